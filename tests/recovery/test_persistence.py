import warnings

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.triggers import at
from tests.drive import NAN, FakeClock, Weights, advance_to, make, steps, train

pytestmark = pytest.mark.filterwarnings("ignore:state_callback was given without load_callback")


class Alone(Weights):
    """Weights that the user saves without a state callback."""

    def save(self, filepath):
        with open(filepath, "wb") as file:
            np.save(file, self.values)


def told(kind, heard):
    return [event.step for event in heard if isinstance(event, kind)]


def settle(r8, step, wait=lambda: None):
    """Run to a step, and do what is due there, with losses that are all much the same."""
    while r8.global_step < step:
        ticket = r8.draw()
        wait()
        r8.report(ticket, 1.0 + 0.01 * (r8.global_step % 3))
    r8.host.between_steps()


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_checkpoint_dir_is_no_file(tmp_path, below):
    """A folder that cannot be made, as there is a file in its place or above it, is refused when the run is built."""
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    with pytest.raises(ValueError, match="checkpoint_dir") as error:
        make(checkpoint_dir=str(folder))

    assert str(error.value) == (
        f"checkpoint_dir must be a folder, or a path where one can be made, got {str(folder)!r}: "
        f"{str(tmp_path / 'file')!r} is not a folder."
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_default_checkpoint_dir_is_no_file(tmp_path, monkeypatch):
    """A file where a save callback's checkpoints would go by default is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(ValueError, match=r"checkpoint_dir must be a folder, .*, got 'checkpoints'"):
        make(save_callback=print)


def test_saving_needs_a_folder():
    """save_checkpoint() without a folder is a RuntimeError that says what to pass."""
    with pytest.raises(
        RuntimeError, match="checkpoint_dir or save_callback must be given to save checkpoints, got None"
    ):
        make().save_checkpoint()


def test_loading_needs_a_path_or_a_folder():
    """load_checkpoint() without a path needs to know a folder."""
    with pytest.raises(RuntimeError, match="path must be given if there is no checkpoint_dir, got None"):
        make().load_checkpoint()


def test_first_backup_comes_before_the_first_step():
    """With a state_callback the first backup is taken before the first batch is drawn."""
    model, heard = Weights(), []
    r8 = make(state_callback=model.get, load_callback=model.load, listeners=[heard.append])
    r8.draw()

    assert [type(event).__name__ for event in heard] == ["RunStarted", "BackupTaken"]


@pytest.mark.parametrize(
    ("every", "per_step", "taken"), [("20s", 10, [0, 2, 4, 6]), ("30s", 15, [0, 2, 4, 6]), ("30s", 0, [0])]
)
def test_backups_every_so_many_seconds(every, per_step, taken):
    """backup_every="20s" takes a backup when 20 s of training have passed, and none besides."""
    model, heard, clock = Weights(), [], FakeClock()
    r8 = make(state_callback=model.get, backup_every=every, listeners=[heard.append], clock=clock)
    for _ in steps(r8):
        clock.advance(per_step)
        r8.update_with_loss(1.0)

    assert told(events.BackupTaken, heard) == taken


def test_backup_by_hand_does_not_move_the_grid():
    """backup_every keeps to its own steps, whatever the user backs up besides."""
    model, heard = Weights(), []
    r8 = make(state_callback=model.get, backup_every=3, listeners=[heard.append])
    advance_to(r8, 1)
    r8.update_cpu_backup(model.get())
    train(r8)

    assert told(events.BackupTaken, heard) == [0, 1, 3, 6]


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_backup_of_none_is_a_backup():
    """A backup is told from no backup by its being there, not by its value."""
    got = []
    r8 = make(load_callback=got.append)
    r8.update_cpu_backup(None)
    r8.report(r8.draw(), NAN)

    assert got == [None]


@pytest.mark.parametrize(
    ("every", "saved"),
    [(None, [3, 6]), (2, [2, 4, 6]), ("20s", [2, 4, 6]), (4, [4, 6]), (at(1, 5), [1, 5, 6])],
    ids=["epochs", "steps", "seconds", "rest", "trigger"],
)
def test_checkpoints_are_due(tmp_path, every, saved):
    """Checkpoints come every epoch by default, else every so many steps or seconds or by a trigger, and at the end."""
    heard, clock = [], FakeClock()
    r8 = make(checkpoint_dir=tmp_path / "new" / "folder", checkpoint_every=every, listeners=[heard.append], clock=clock)
    for _ in steps(r8):
        clock.advance(10)
        r8.update_with_loss(1.0)
    r8.close()

    assert told(events.CheckpointSaved, heard) == saved


def test_last_checkpoint_comes_at_the_end_of_the_budget(tmp_path):
    """A run that ends in mid-epoch is saved at its end, whether by steps or by time."""
    heard, clock = [], FakeClock()
    r8 = make(num_steps=4, checkpoint_dir=tmp_path / "a", listeners=[heard.append])
    train(r8)
    timed = make(train_duration_seconds=35, checkpoint_dir=tmp_path / "b", listeners=[heard.append], clock=clock)
    for _ in steps(timed):
        clock.advance(10)
        timed.update_with_loss(1.0)

    assert told(events.CheckpointSaved, heard) == [3, 4, 3, 4]


def test_checkpoints_hold_the_model_as_of_their_step(tmp_path):
    """A checkpoint is written when the user's own step is complete, not within update_with_loss()."""
    model, steps_saved = Weights(), []
    r8 = make(
        checkpoint_dir=tmp_path,
        save_callback=lambda state, path: steps_saved.append(
            (state["scheduler"]["pace"]["step"], state["model"]["w"][0])
        ),
        state_callback=model.get,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in steps(r8):
            r8.update_with_loss(1.0)
            model.values = model.values + 1

    assert steps_saved == [(3, 3), (6, 6)]


def test_save_callback_gets_scheduler_and_model(tmp_path):
    """Without a state_callback the save callback gets the newest backup, and None if there is none."""
    got = []
    r8 = make(checkpoint_dir=tmp_path, save_callback=lambda state, path: got.append(state) or open(path, "w").close())
    r8.save_checkpoint()
    r8.update_cpu_backup({"w": 1})
    r8.save_checkpoint()

    assert [sorted(state) for state in got] == [["model", "scheduler"]] * 2
    assert [state["model"] for state in got] == [None, {"w": 1}]


def test_one_argument_save_callback_gets_the_path(tmp_path):
    """The prototype's save_callback(filepath) is called with a path in the folder."""
    got = []

    def save(filepath):
        got.append(filepath)
        np.savez(filepath, w=np.ones(2))

    saved = make(checkpoint_dir=tmp_path, save_callback=save).save_checkpoint()

    assert str(tmp_path) in got[0]
    assert saved.model_path == tmp_path / f"model_000000000001_{saved.run_id[:8]}.npz"


def test_save_callback_alone_saves_into_checkpoints(tmp_path, monkeypatch):
    """Without checkpoint_dir a save_callback writes to ./checkpoints."""
    monkeypatch.chdir(tmp_path)
    model = Weights()
    with make(save_callback=model.save, state_callback=model.get) as r8:
        train(r8)

    assert sorted(path.name[:18] for path in (tmp_path / "checkpoints").iterdir()) == [
        "ck_000000000001.r8", "ck_000000000002.r8", "model_000000000001", "model_000000000002"
    ]  # fmt: skip


@pytest.mark.parametrize(("num_samples", "every"), [(3200, 200), (120, 10)])
def test_default_backups_come_four_times_an_epoch(num_samples, every):
    """Without backup_every a backup is taken four times an epoch, at least ten steps apart, and more often at first."""
    model, heard, num_steps = Weights(), [], 12 * every
    settings = {"num_epochs": 30, "state_callback": model.get, "listeners": [heard.append], "clock": FakeClock()}
    settle(make(num_samples, **settings), num_steps)
    taken = told(events.BackupTaken, heard)

    assert set(range(0, num_steps + 1, every)) <= set(taken)
    assert [step for step in taken if step >= 8 * every] == list(range(8 * every, num_steps + 1, every))
    assert taken[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_default_backups_come_every_thirty_seconds():
    """Where steps are slow, time says when."""
    model, heard, clock = Weights(), [], FakeClock()
    r8 = make(4000, num_epochs=1, state_callback=model.get, listeners=[heard.append], clock=clock)
    settle(r8, 400)
    settle(r8, 412, lambda: clock.advance(10.0))

    assert [step for step in told(events.BackupTaken, heard) if step > 401] == [403, 406, 409, 412]


def test_missing_model_file_is_noted_once(tmp_path):
    """A save callback that leaves no file is accepted, and the user is told once that there is no model."""
    heard = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(make(checkpoint_dir=tmp_path, save_callback=lambda state, path: True, listeners=[heard.append]))

    assert [event.model_path for event in heard if isinstance(event, events.CheckpointSaved)] == [None, None]
    assert told(events.Notice, heard) == [3]


def test_constructor_writes_nothing(tmp_path):
    """A folder is made when the first checkpoint is written."""
    make(checkpoint_dir=tmp_path / "later")

    assert not (tmp_path / "later").exists()


def test_failed_checkpoint_asked_for_is_an_error(tmp_path):
    """save_checkpoint() called by the user raises the error of the disk."""
    r8 = make(checkpoint_dir=tmp_path / "file" / "saved")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        r8.save_checkpoint()


def test_without_backup_the_newest_checkpoint_is_restored(tmp_path):
    """A refused loss with no RAM backup goes back to this run's newest checkpoint."""
    model = Alone()
    r8 = make(num_epochs=3, checkpoint_dir=tmp_path, save_callback=model.save, load_callback=model.load)
    advance_to(r8, 3)
    model.values[:] = 3
    advance_to(r8, 5)
    model.values[:] = NAN
    outcome = r8.report(r8.draw(), NAN)

    assert (model.values.tolist(), outcome.rolled_back_to) == ([3, 3], 3)


def test_other_runs_checkpoint_is_never_restored(tmp_path):
    """A checkpoint of another run in the same folder is not restored."""
    other, model = Weights(), Weights()
    make(checkpoint_dir=tmp_path, save_callback=other.save, state_callback=other.get).save_checkpoint()
    r8 = make(checkpoint_dir=tmp_path, load_callback=model.load)
    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        assert r8.report(r8.draw(), NAN).rolled_back_to is None
    assert model.loaded == []


def test_own_checkpoint_is_found_among_others(tmp_path):
    """A newer checkpoint of another run in the same folder does not hide this run's own."""
    other, model = Weights(), Alone()
    r8 = make(checkpoint_dir=tmp_path, save_callback=model.save, load_callback=model.load)
    model.values[:] = 5
    r8.save_checkpoint()
    model.values[:] = 0
    make(checkpoint_dir=tmp_path, save_callback=other.save, state_callback=other.get).save_checkpoint()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = r8.report(r8.draw(), NAN)

    assert (outcome.rolled_back_to, model.values.tolist()) == (0, [5, 5])


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_checkpoint_with_a_witness_goes_first(tmp_path):
    """A checkpoint after which nothing was trained on has no witness: an older one that has goes first."""
    model = Alone()
    more = {"save_callback": model.save, "load_callback": model.load}
    r8 = make(num_epochs=9, checkpoint_dir=tmp_path, checkpoint_every=99, **more)
    for step in (1, 2):
        advance_to(r8, step)
        model.values = np.full(2, float(step))
        r8.save_checkpoint()
    back = [r8.report(r8.draw(), NAN).rolled_back_to for _ in range(4)]

    assert back == [1, 1, 1, 1]


@pytest.mark.parametrize("damage", ["checkpoint", "model", "missing"])
def test_damaged_checkpoint_is_skipped_in_recovery(tmp_path, damage):
    """A checkpoint that was damaged since it was written is not restored; an older one of this run is."""
    model = Alone()
    r8 = make(num_epochs=9, checkpoint_dir=tmp_path, save_callback=model.save, load_callback=model.load)
    r8.save_checkpoint()
    advance_to(r8, 1)
    newest = r8.save_checkpoint()
    if damage == "checkpoint":
        newest.path.write_bytes(b"junk")
    elif damage == "model":
        newest.model_path.write_bytes(b"junk")
    else:
        newest.path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = r8.report(r8.draw(), NAN)

    assert outcome.rolled_back_to == 0


def test_raising_save_callback_lets_the_run_go_on(tmp_path):
    """A save callback that raises causes a warning with its traceback and does not end the run."""

    def broken(state, path):
        raise KeyError("layer4")

    r8 = make(num_epochs=1, checkpoint_dir=tmp_path, save_callback=broken)
    with pytest.warns(RuntimeWarning, match=r"(?s)the checkpoint at step 3 could not be written:.*Traceback.*layer4"):
        train(r8)

    r8.close()

    assert (r8.global_step, list(tmp_path.iterdir())) == (3, [])


def test_loaded_checkpoint_ends_older_backups(tmp_path):
    """After load_checkpoint(), no refused loss restores a backup from before it."""
    model = Weights()
    r8 = make(
        num_epochs=9,
        checkpoint_dir=tmp_path,
        checkpoint_every=99,
        backup_every=1,
        save_callback=model.save,
        load_callback=model.load,
        state_callback=model.get,
    )
    advance_to(r8, 1)
    model.values = np.ones(2)
    r8.save_checkpoint()
    advance_to(r8, 4)
    model.values = np.full(2, 4.0)
    advance_to(r8, 6)
    r8.load_checkpoint()
    r8.report(r8.draw(), NAN)

    assert model.values.tolist() == [1, 1]
    assert [each.step for each in r8.host.persistence.backup.backups if each.can_be_put] == [1]


def test_load_checkpoint_takes_a_path(tmp_path):
    """A checkpoint can be loaded by name, also by a scheduler that has no folder."""
    r8 = make(checkpoint_dir=tmp_path, checkpoint_every=2)
    train(r8)
    fresh = make()
    fresh.load_checkpoint(tmp_path / "ck_000000000002.r8")

    assert fresh.global_step == 4
