"""When checkpoints are due, which one is the best, and what happens when saving fails."""

import errno
import json
import os
import shutil
import threading
import warnings

import numpy as np
import pytest

from learnit_r8 import CheckpointStore, R8Scheduler, events
from learnit_r8.events.bus import Announcer
from learnit_r8.state.saver import CheckpointSaver
from learnit_r8.testing import record_events
from learnit_r8.triggers import Elapsed, every
from tests.drive import NAN, Weights, advance_to, make, train


def validate(r8, values):
    """Two epochs and more of the seed document's loop, with a validation after each epoch."""
    for epoch in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
        r8.log(val_loss=values[epoch])


def steps_kept(folder):
    stores = [CheckpointStore(folder, keep=1, run_id="").load(path) for path in sorted(folder.glob("ck_*"))]
    return [checkpoint.state["pace"]["step"] for checkpoint in stores]


class Disk:
    """A disk whose writes fail while told to."""

    def __init__(self, folder, **arguments):
        self.refuses, self.tried = False, []
        store = CheckpointStore(folder, keep=3, run_id="me")
        self.saver = CheckpointSaver(
            store,
            **{
                "when": every(1),
                "each_epoch": False,
                "monitor": None,
                "mode": "min",
                "announcer": Announcer([], lambda: (0, 0.0)),
                **arguments,
            },
        )

    def step(self, step, *, run_ended=False):
        if self.saver.is_due(Elapsed(step, step, 0.0, step - 1, step - 1, 0.0), epoch_ended=False, run_ended=run_ended):
            self.tried.append(step)
            self.saver.attempt(self._write, step)

    def _write(self):
        if self.refuses:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.saver.store.save({"pace": {"step": 0}})


@pytest.mark.parametrize(
    ("batches", "saved"), [(1, [10, 20, 24]), (2, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24])], ids=["one", "two"]
)
def test_epochs_of_a_single_step_are_not_all_saved(tmp_path, batches, saved):
    """A training on one full batch has epochs of one step; whose checkpoints are ten steps apart."""
    told, listener = [], lambda event: told.append(event.step) if isinstance(event, events.CheckpointSaved) else None
    r8 = R8Scheduler(
        num_epochs=24 // batches, scheduler_mode="keep", checkpoint_dir=tmp_path, listeners=[listener],
        handle_signals=False,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        for _ in r8.batches([np.zeros(3)] * batches):
            r8.update_with_loss(1.0)

    assert told == saved


def test_checkpoint_of_an_epoch_that_an_interrupt_cut_is_due_again(tmp_path):
    """Whether an epoch's end is due is the same when the call is repeated at the same step, before it was written."""
    saver = Disk(tmp_path, when=every(1000), each_epoch=True).saver
    at = Elapsed(6, 6, 0.0, 0, 0, 0.0)

    assert saver.is_due(at, epoch_ended=True, run_ended=False)
    assert saver.is_due(at, epoch_ended=True, run_ended=False)


@pytest.mark.filterwarnings("ignore:the checkpoint at step")
def test_attempts_become_rarer(tmp_path):
    """While saving fails, 1, 2, 4 ... 64 intervals pass between two attempts; the run's end is always tried."""
    disk = Disk(tmp_path)
    disk.refuses = True
    for step in range(1, 300):
        disk.step(step)
    disk.step(300, run_ended=True)

    assert disk.tried == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 300]
    assert disk.saver.num_failed == 11


@pytest.mark.filterwarnings("ignore:the checkpoint at step")
def test_a_disk_that_recovers_is_used_as_before(tmp_path):
    """After the first successful save, every interval is used again."""
    disk = Disk(tmp_path)
    for step in range(1, 20):
        disk.refuses = 3 <= step <= 6
        disk.step(step)

    assert disk.tried == [1, 2, 3, 4, 6, 10, *range(11, 20)]
    assert (disk.saver.num_failed, disk.saver.last_error) == (3, "")


def test_failure_is_in_the_warning_and_in_the_summary(tmp_path):
    """The warning says what failed and how many attempts are skipped; summary() gives the last error."""
    r8 = make(checkpoint_dir=tmp_path / "file" / "saved", checkpoint_every=1)
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(r8)
    texts = [str(warning.message).splitlines() for warning in caught]

    assert [lines[0] for lines in texts] == [f"the checkpoint at step {n} could not be written:" for n in (1, 2, 4, 6)]
    assert [lines[-1] for lines in texts][:2] == [
        "Training continues.",
        "Training continues. The next 1 are skipped.",
    ]
    assert "checkpoints failed: 4; the last one failed: NotADirectoryError" in r8.summary()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    """A read-only folder causes warnings and does not end the run."""
    tmp_path.chmod(0o500)
    r8 = make(checkpoint_dir=tmp_path)
    with pytest.warns(RuntimeWarning, match="Permission denied"):
        train(r8)
    tmp_path.chmod(0o700)

    assert (r8.pace.is_finished, list(tmp_path.iterdir())) == (True, [])


def test_low_space_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    """With less than 1.2 times the space of the last checkpoint free, nothing is written or deleted."""
    model = Weights()
    r8 = make(num_epochs=9, checkpoint_dir=tmp_path, save_callback=model.save, state_callback=model.get)
    first = r8.save_checkpoint()
    size = first.path.stat().st_size + first.model_path.stat().st_size
    usage = shutil.disk_usage(tmp_path)
    before = sorted(tmp_path.iterdir())
    advance_to(r8, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1.2 * size) - 1))
    with pytest.raises(
        OSError, match=rf"{int(1.2 * size)} bytes must be free for a checkpoint, got {int(1.2 * size) - 1}"
    ):
        r8.save_checkpoint()
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1.2 * size)))

    assert r8.save_checkpoint().path.name == "ck_000000000002.r8"


class SmallDisk:
    """A disk that has room for some checkpoints only, as `shutil.disk_usage` tells it; writing beyond it fails."""

    def __init__(self, monkeypatch, folder, capacity):
        self.folder, self.capacity, self.usage = folder, capacity, shutil.disk_usage(folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: self.usage._replace(free=self.capacity - self.used))

    @property
    def used(self):
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class LargeWeights(Weights):
    """A model whose file is large beside the spare room; writing it notes what else is whole on the disk."""

    def __init__(self, folder):
        super().__init__()
        self.values = np.zeros(2**17)
        self.folder, self.whole = folder, []

    def save(self, state_dict, filepath):
        self.whole.append(len(list(self.folder.glob("ck_*.r8"))))
        super().save(state_dict, filepath)


@pytest.mark.parametrize("keep", [2, 3, "thin"])
def test_disk_with_room_for_what_is_kept_gets_the_end_of_the_run(keep, tmp_path, monkeypatch, recwarn):
    """Older checkpoints give way to the newest before it is written, never the newest one; after a resume as well."""
    model = LargeWeights(tmp_path)
    size = model.values.nbytes
    disk = SmallDisk(monkeypatch, tmp_path, int(2.2 * size))
    given = {"checkpoint_dir": tmp_path, "keep_checkpoints": keep, "save_callback": model.save,
             "state_callback": model.get, "load_callback": model.load, "backup_dir": False}  # fmt: skip
    with make(num_epochs=5, **given) as r8:
        train(r8)
    resumed = make(num_epochs=9, resume="auto", **given)
    began = resumed.global_step
    train(resumed)

    assert began == 15
    assert make(num_epochs=9, resume="auto", **given).global_step == 27
    assert min(model.whole[1:]) >= 1
    assert disk.used <= disk.capacity
    assert not [str(one.message) for one in recwarn.list if "nothing to do" not in str(one.message)]


def test_best_checkpoint_does_not_give_way(tmp_path, monkeypatch):
    """On a disk with room for two, the best one stays, and a newer one that needs its place is not written."""
    model = LargeWeights(tmp_path)
    r8 = make(num_epochs=4, checkpoint_dir=tmp_path, monitor="val_loss", save_callback=model.save,
              state_callback=model.get, backup_dir=False)  # fmt: skip
    SmallDisk(monkeypatch, tmp_path, int(2.1 * model.values.nbytes))
    with pytest.warns(RuntimeWarning, match="bytes must be free for a checkpoint"):
        validate(r8, [1.0, 2.0, 3.0, 4.0])

    assert r8.best_checkpoint.path.exists()
    assert len(list(tmp_path.glob("ck_*.r8"))) == 2


def test_best_checkpoint_is_kept(tmp_path):
    """With monitor, the best checkpoint stays beside the newest ones, the one before it goes, and listeners hear."""
    heard, more = record_events(), {"checkpoint_dir": tmp_path, "keep_checkpoints": 2, "monitor": "val_loss"}
    r8 = make(num_epochs=6, listeners=[heard], **more)
    validate(r8, [3.0, 2.0, 1.0, 1.5, 1.2, 1.1])
    best, told = r8.best_checkpoint, heard.of(events.BestSaved)

    assert (best.step, best.value, best.path.name, best.model_path) == (9, 1.0, "ck_000000000003.r8", None)
    assert steps_kept(tmp_path) == [9, 15, 18]
    assert [(event.step, event.monitor, event.value) for event in told][1:] == [(6, "val_loss", 2), (9, "val_loss", 1)]
    assert "best so far: ck_000000000003.r8 of step 9 (1)" in r8.summary()


def test_highest_is_best_with_mode_max(tmp_path):
    """mode="max" keeps the checkpoint with the highest value."""
    with pytest.warns(RuntimeWarning, match="of which lower is better by its name"):
        r8 = make(num_epochs=4, checkpoint_dir=tmp_path, keep_checkpoints=1, monitor="val_loss", mode="max")
    validate(r8, [3.0, 4.0, 1.0, 1.5])

    assert steps_kept(tmp_path) == [6, 12]


def test_metric_without_a_checkpoint_of_its_step_makes_one(tmp_path):
    """A new best value is saved with the model of its step, even if no checkpoint is due."""
    model = Weights()
    r8 = make(
        num_epochs=3,
        checkpoint_dir=tmp_path,
        checkpoint_every=99,
        monitor="val_loss",
        save_callback=model.save,
        state_callback=model.get,
        load_callback=model.load,
    )
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
            model.values = model.values + 1
            if r8.global_step in (2, 4, 7):
                r8.log(val_loss={2: 1.0, 4: 0.5, 7: 2.0}[r8.global_step])
    r8.load_checkpoint(r8.best_checkpoint.path)

    assert (model.values.tolist(), steps_kept(tmp_path)) == ([4, 4], [2, 4, 9])


@pytest.mark.parametrize("value", [NAN, 5.0])
def test_worse_and_nan_are_not_best(tmp_path, value):
    """NaN is never the best value, and an equal one does not take the place of the first."""
    r8 = make(checkpoint_dir=tmp_path, monitor="val_loss")
    validate(r8, [5.0, value])

    assert r8.best_checkpoint.step == 3


def test_metric_of_another_step_changes_nothing(tmp_path):
    """A value of a step without a checkpoint pins nothing."""
    r8 = make(checkpoint_dir=tmp_path, monitor="val_loss")
    with pytest.warns(RuntimeWarning, match="logged were none so far"):
        advance_to(r8, 4)
    with pytest.warns(RuntimeWarning, match="no best model is kept of it"):
        r8.log(step=1, val_loss=0.0)
    train(r8)

    assert r8.best_checkpoint is None


def test_best_survives_a_resume(tmp_path):
    """A resumed run knows the best checkpoint so far, and keeps it until there is a better one."""
    more = {"num_epochs": 5, "checkpoint_dir": tmp_path, "keep_checkpoints": 1, "monitor": "val_loss"}
    first = make(**more)
    for epoch in first.epoch_iterator():
        if epoch == 3:
            break
        for _ in first.batch_iterator():
            first.update_with_loss(1.0)
        first.log(val_loss=[2.0, 1.0, 3.0][epoch])
    second = make(resume="auto", **more)

    assert second.best_checkpoint == first.best_checkpoint
    validate(second, [None, None, None, 1.5, 0.5])
    assert (second.best_checkpoint.step, steps_kept(tmp_path)) == (15, [15])


def test_the_best_of_another_metric_is_not_that_of_this_one(tmp_path):
    """A run resumed with another metric to watch knows no best checkpoint yet."""
    more = {"num_epochs": 5, "checkpoint_dir": tmp_path}
    first = make(monitor="val_loss", **more)
    for epoch in first.epoch_iterator():
        for _ in first.batch_iterator():
            first.update_with_loss(1.0)
        first.log(val_loss=0.1 * epoch)
        if epoch == 2:
            break
    second = make(resume="auto", monitor="error", **more)

    assert second.best_checkpoint is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"run_id": 3}', b"\xff", None])
def test_damaged_note_of_the_best_is_ignored(tmp_path, content):
    """If the note that names the best checkpoint is unreadable, only that knowledge is lost."""
    more = {"checkpoint_dir": tmp_path, "monitor": "val_loss"}
    first = make(**more)
    validate(first, [1.0, 2.0])
    [note] = tmp_path.glob("best_*.json")
    about = json.loads(note.read_text())
    assert (about["monitor"], about["mode"], about["value"], about["step"]) == ("val_loss", "min", 1.0, 3)
    note.unlink() if content is None else note.write_bytes(content)
    second = make(num_epochs=3, resume="auto", **more)

    assert (second.best_checkpoint, second.global_step) == (None, 6)


def test_metric_that_is_never_logged_causes_a_warning(tmp_path):
    """If the monitored metric was not logged with others, a warning lists those that were."""
    r8 = make(checkpoint_dir=tmp_path, monitor="accuracy")
    with pytest.warns(RuntimeWarning, match=r"monitor must be a metric .* got 'accuracy'; logged were \['val_loss'\]"):
        validate(r8, [1.0, 2.0])


def test_note_that_cannot_be_written_causes_a_warning(tmp_path, monkeypatch):
    """If the note about the best checkpoint cannot be written, the checkpoint is kept anyway, with a warning."""

    def refuse(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("learnit_r8.state.store.replace", refuse)
    r8 = make(checkpoint_dir=tmp_path, monitor="val_loss")
    with pytest.warns(RuntimeWarning, match="the best checkpoint could not be recorded.*No space left"):
        validate(r8, [1.0, 2.0])

    assert r8.best_checkpoint.step == 3


def test_run_inside_a_handler_of_another_exception_is_saved_at_its_end(tmp_path):
    """A run started within an exception handler is saved like any other when it is closed."""
    try:
        raise MemoryError
    except MemoryError:
        with make(num_epochs=9, checkpoint_dir=tmp_path, checkpoint_every=999) as r8:
            advance_to(r8, 4)

    assert steps_kept(tmp_path) == [4]


def test_half_a_step_is_not_saved(tmp_path):
    """A run that an exception ends in the middle of a step is not saved at that point."""

    def run():
        with make(num_epochs=9, checkpoint_dir=tmp_path, checkpoint_every=999) as r8:
            advance_to(r8, 4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()

    assert steps_kept(tmp_path) == []


def test_folder_stays_when_the_program_changes_its_own(tmp_path, monkeypatch):
    """A relative checkpoint_dir is where it was when the run was built, wherever the program goes."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    r8 = make(num_epochs=4, checkpoint_dir="here", keep_checkpoints=2)
    advance_to(r8, 6)
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(r8)

    assert (steps_kept(tmp_path / "here"), os.listdir(tmp_path / "elsewhere")) == ([9, 12], [])


def _newest(store):
    [*_, (name, _)] = store.own_states()
    return store.load_named(name)


def test_threads_may_share_a_folder(tmp_path):
    """Runs in threads of one process that save to one folder at the same time keep each their own files."""
    together = threading.Barrier(4, timeout=30)

    def run(number, failed):
        def save(state, filepath):
            together.wait()
            with open(filepath, "w") as file:
                file.write(str(number))
            together.wait()

        r8 = make(num_epochs=3, checkpoint_dir=tmp_path, save_callback=save, keep_checkpoints=1)
        train(r8)
        saver = r8.host.persistence.saver
        failed.append(saver.last_error)
        contents.append(_newest(r8.host.persistence.store).model_path.read_text() == str(number))

    failed, contents = [], []
    threads = [threading.Thread(target=run, args=(number, failed)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (failed, contents) == ([""] * 4, [True] * 4)


@pytest.mark.filterwarnings("ignore:the checkpoint at step")
def test_best_is_of_the_step_of_its_metric_while_others_are_left_out(tmp_path):
    """While attempts are left out, a best value still keeps the checkpoint of its own step, not of a later one."""
    disk = Disk(tmp_path, monitor="loss")
    disk.refuses = True
    for step in (1, 2):
        disk.step(step)
    disk.refuses = False
    disk.saver.note({"loss": 1.0}, 3, 3)
    for step in (3, 4):
        disk.step(step)

    assert disk.saver.best.step == 3


def test_best_value_whose_step_could_not_be_saved_is_given_up(tmp_path):
    """While an incident is open nothing is saved; afterwards there is one checkpoint, not one at every step."""
    disk = Disk(tmp_path, monitor="loss", when=every(100))
    disk.saver.note({"loss": 1.0}, 3, 3)
    for step in (5, 6, 7):
        disk.step(step)

    assert (disk.tried, disk.saver.best) == ([5], None)


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_a_checkpoint_that_the_user_asks_for_holds_no_weights_that_are_not_finite(tmp_path):
    """They are looked at as before one that is due; sound ones are written as they are."""
    model = Weights()
    r8 = make(
        num_steps=40, checkpoint_dir=tmp_path, checkpoint_every=10_000, backup_every=5, backup_dir=False,
        state_callback=model.get, load_callback=model.load, save_callback=model.save,
    )  # fmt: skip
    advance_to(r8, 12)
    model.values = np.array([1.0, 2.0])
    sound = np.load(r8.save_checkpoint().model_path)
    advance_to(r8, 17)
    model.values = np.full(2, np.nan)
    mended = np.load(r8.save_checkpoint().model_path)

    assert sound.tolist() == [1.0, 2.0]
    assert np.isfinite(mended).all()
    assert np.isfinite(model.values).all()
