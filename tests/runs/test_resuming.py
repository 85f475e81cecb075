"""Resuming a run: automatically, from a file, with another budget, with other samples."""

import os
import re
import warnings
from contextlib import nullcontext as nothing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import (
    CheckpointStore,
    FiniteGuard,
    NoValidCheckpoint,
    Policy,
    R8Scheduler,
    Recovery,
    SpikeGuard,
    even_groups,
    events,
)
from learnit_r8.engine.settings import grouped
from learnit_r8.policies import Shuffle, Steady
from learnit_r8.sources.refit import fit_state
from learnit_r8.state.callbacks import Callbacks
from tests.drive import FakeClock, Weights, advance_to, batch_loss, flat, make, sample_losses, steps, train

resume_from = R8Scheduler.resume_from_checkpoint


def interrupted(folder, step, num_samples=20, **arguments):
    """Train to a step with a checkpoint of each, and return the drawn batches."""
    r8 = make(num_samples, checkpoint_dir=folder, checkpoint_every=1, keep_checkpoints=99, **arguments)
    seen = []
    for epoch, indices, lr in steps(r8):
        seen.append((epoch, indices.tolist(), lr))
        r8.update_with_loss(batch_loss(indices))
        if r8.global_step == step:
            break
    r8.save_checkpoint()
    return seen


def test_where_a_run_begins(tmp_path):
    """With "auto" and an empty or missing folder at step 0; with a path at that of the file, in any folder."""
    for folder in (tmp_path, tmp_path / "missing"):
        assert make(checkpoint_dir=folder, resume="auto").global_step == 0
    interrupted(tmp_path, 5)
    for more in ({}, {"checkpoint_dir": tmp_path / "new"}):
        assert make(20, resume=tmp_path / "ck_000000000002.r8", **more).global_step == 2


def test_a_finished_run_says_so_and_may_go_on(tmp_path):
    """Started or built again it warns, and its iterators yield nothing; with more epochs it trains them."""
    train(make(checkpoint_dir=tmp_path))
    with pytest.warns(RuntimeWarning, match="finished, nothing to do: the resumed run has ended at step 6"):
        r8 = make(checkpoint_dir=tmp_path, resume="auto")
    r8.close()

    assert (list(r8.epoch_iterator()), list(r8.batch_iterator()), r8.draw_if_any()) == ([], [], None)
    assert len(list(tmp_path.glob("ck_*"))) == 2
    with pytest.warns(RuntimeWarning, match="nothing to do"):
        resume_from(tmp_path).close()
    assert {epoch for epoch, _, _ in train(resume_from(tmp_path, num_epochs=3))} == {2}


def test_auto_never_begins_silently_from_zero(tmp_path):
    """If there are checkpoints but none is readable, resume="auto" raises an error with every reason."""
    for number in (1, 2):
        (tmp_path / f"ck_{number:012d}.r8").write_bytes(b"junk")
    with pytest.raises(NoValidCheckpoint, match=r"(?s)ck_000000000002\.r8: the file.*ck_000000000001\.r8: the"):
        make(checkpoint_dir=tmp_path, resume="auto")


def test_listeners_hear_of_skipped_files(tmp_path):
    """After RunStarted, listeners hear from which checkpoint the run resumes and why newer ones were skipped."""
    interrupted(tmp_path, 3)
    (tmp_path / "ck_000000000099.r8").write_bytes(b"junk")
    heard = []
    with pytest.warns(RuntimeWarning, match=r"checkpoints skipped: ck_000000000099\.r8"):
        r8 = make(20, num_epochs=5, checkpoint_dir=tmp_path, resume="auto", listeners=[heard.append])
    r8.draw()

    assert [type(event).__name__ for event in heard[:2]] == ["RunStarted", "CheckpointLoaded"]
    assert heard[1].path == str(tmp_path / "ck_000000000003.r8")
    assert [reason.split(":")[0] for reason in heard[1].skipped] == ["ck_000000000099.r8"]
    assert "num_epochs is 5, it was 2" in heard[1].differences


def test_auto_loads_the_model(tmp_path):
    """The model of the newest checkpoint is loaded as the scheduler is built, and the next backup is of that one."""
    model = Weights()
    more = {
        "checkpoint_dir": tmp_path,
        "save_callback": model.save,
        "load_callback": model.load,
        "state_callback": model.get,
    }
    first = make(**more)
    advance_to(first, 2)
    model.values = np.full(2, 2.0)
    first.save_checkpoint()
    model.values = np.zeros(2)
    second = make(resume="auto", **more)

    assert model.values.tolist() == [2, 2]
    second.report(second.draw(), float("nan"))
    assert model.values.tolist() == [2, 2]


class Descent:
    """A dict of weights and moments that a loop changes in place, with a callback each for its state and to load it."""

    def __init__(self, **more):
        self.parts = {"w": np.zeros(3, np.float32), "m": [np.zeros(3)], "steps": 0, **more}

    def load(self, state):
        self.parts.update(state)

    def train(self, folder, last=None, **more):
        """Train up to a step; returns the scheduler."""
        r8 = make(
            24, num_epochs=4, checkpoint_dir=folder, backup_dir=False, resume="auto", state_callback=lambda: self.parts,
            load_callback=self.load, guard="finite", **more,
        )  # fmt: skip
        for _, indices, lr in steps(r8):
            error = self.parts["w"] - np.resize(indices, 3) / 24
            if r8.update_with_loss(float(np.square(error).mean())):
                self.parts["m"][0] += 0.5 * (error - self.parts["m"][0])
                self.parts["w"] -= np.float32(lr) * self.parts["m"][0].astype(np.float32)
                self.parts["steps"] += 1
            if r8.global_step == last:
                break
        return r8


def test_a_checkpoint_holds_what_the_state_callback_returns(tmp_path):
    """Where there is no save callback; killed twice, the run ends with the same weights, bit for bit."""
    whole = Descent()
    whole.train(tmp_path / "whole")
    for last in (9, 15, None):
        model = Descent()
        r8 = model.train(tmp_path / "killed", last)
        assert model.parts["steps"] == r8.global_step

    assert r8.global_step == whole.parts["steps"] == 24
    assert [model.parts["w"].tobytes(), model.parts["m"][0].tobytes()] == [
        whole.parts["w"].tobytes(), whole.parts["m"][0].tobytes(),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:checkpoints cannot hold")
def test_what_no_file_can_hold_keeps_its_present_value(tmp_path):
    cold, warm = object(), object()
    with pytest.warns(RuntimeWarning, match="checkpoints cannot hold other .*: load_callback gets the present value"):
        Descent(other=cold).train(tmp_path, 7)
    model = Descent(other=warm)
    model.train(tmp_path, 8)

    assert (model.parts["other"] is warm, model.parts["steps"]) == (True, 8)


def test_a_file_that_a_save_callback_has_written_comes_as_a_path(tmp_path):
    """Though the script has none any more."""
    saved_with_model(tmp_path)
    model = Weights()
    make(checkpoint_dir=tmp_path, resume="auto", load_callback=model.load, state_callback=model.get).draw()

    assert [type(source) for source, _ in model.loaded] == [str]


def saved_with_model(folder):
    """A checkpoint of step 2 with a model."""
    model = Weights()
    r8 = make(checkpoint_dir=folder, save_callback=model.save, state_callback=model.get)
    advance_to(r8, 2)
    r8.save_checkpoint()
    return model


@pytest.mark.parametrize("has_adapter", [True, False])
def test_model_without_a_load_callback(tmp_path, has_adapter):
    """It is loaded when an adapter brings a callback; where none has by the start, a warning says it is unchanged."""
    model = saved_with_model(tmp_path)
    second = make(checkpoint_dir=tmp_path, resume="auto")
    if has_adapter:
        second.host.persistence.adopt(Callbacks(load=model.load))
    warned = "there is no load_callback, so the model is unchanged; the saved one"
    with nothing() if has_adapter else pytest.warns(RuntimeWarning, match=warned):
        second.draw()

    assert [os.path.basename(source)[:5] for source, _ in model.loaded] == ["model"] * has_adapter


def test_failing_load_callback_changes_nothing(tmp_path):
    """A load callback that raises leaves scheduler, backups and the run's own files unchanged."""
    saved_with_model(tmp_path)
    second = make(checkpoint_dir=tmp_path, load_callback=lambda source: 1 / 0)
    second.update_cpu_backup(1)
    persistence = second.host.persistence
    run_id = persistence.store.run_id
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        second.load_checkpoint()

    assert (second.global_step, persistence.backup.is_empty, persistence.store.run_id) == (0, False, run_id)


class Own(Policy):
    """A user's policy."""

    name = "own"


HALVES = np.arange(20) % 2


@pytest.mark.parametrize(
    ("before", "other", "text"),
    [
        ({}, {"policy": "shuffle"}, "policy is 'shuffle', it was 'balanced'"),
        ({}, {"policy": "quartile"}, "policy is 'quartile'"),
        ({}, {"groups": [0, 1] * 10}, "groups is 20 labels with the digest .*, it was None"),
        ({}, {"recovery": Recovery(trust_steps=9)}, "recovery is .*trust_steps=9.*it was .*trust_steps=32"),
        ({}, {"alpha": 0.3}, "alpha is 0.3, it was None"),
        (
            {"policy": even_groups(Own()), "groups": HALVES},
            {"policy": even_groups(Own(), exponent=0.25), "groups": HALVES},
            r"policy is EvenGroups\(.*exponent=0.25",
        ),
        ({"seed": 3}, {"seed": 4}, "seed"),
    ],
)
def test_changed_identity_causes_a_warning(tmp_path, before, other, text):
    """A resumed run with another policy, groups, recovery or alpha uses those and warns of each; its seed is kept."""
    interrupted(tmp_path, 3, **before)
    said = (
        "keeps the seed of the saved one, 3" if text == "seed" else f"the resumed run is configured differently: {text}"
    )
    with pytest.warns(RuntimeWarning, match=f"(?s){said}"):
        r8 = make(20, checkpoint_dir=tmp_path, resume="auto", **other)
    assert r8.host.source.seed == before.get("seed", 0)
    train(r8)

    assert r8.pace.is_finished


def test_another_policy_goes_on_in_mid_pass():
    """One that selects has swept the data before the epoch ends: one that takes all of it begins a new sweep."""
    for stop in range(4, 15):
        before = make(20, policy=Steady(), num_epochs=4)
        advance_to(before, stop)
        after = make(20, policy="balanced", num_epochs=4)
        after.load_state_dict(before.state_dict())
        train(after)

        assert after.pace.is_finished


def test_same_configuration_is_not_warned_of(tmp_path):
    """Unchanged schedules, policies and guards of a user are no difference; an ordinary resume says nothing at all."""

    def falling(progress):
        return 0.1 - 0.05 * progress

    model, heard = Weights(), []
    more = {"scheduler_mode": falling, "policy": even_groups("balanced"), "groups": HALVES, "num_epochs": 4}
    more |= {"state_callback": model.get, "save_callback": model.save, "load_callback": model.load}
    # The loss of the fifth batch is probed, in every run of these losses.
    interrupted(tmp_path, 6, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make(20, checkpoint_dir=tmp_path, resume="auto", listeners=[heard.append], **more))

    [loaded] = [event for event in heard if isinstance(event, events.CheckpointLoaded)]
    assert loaded.differences == ()


def test_run_built_again_is_the_same(tmp_path):
    """resume_from_checkpoint without new arguments builds the same run, which continues bit for bit."""
    more = {"num_epochs": 3, "initial_lr": 0.2, "scheduler_mode": "linear", "policy": "quartile", "seed": 7}
    whole = train(make(20, **more))
    seen = interrupted(tmp_path, 7, **more)
    r8 = resume_from(tmp_path)

    assert seen + train(r8) == whole
    assert r8.host.persistence.store.folder == tmp_path


def test_new_checkpoints_go_to_the_same_folder(tmp_path):
    """A run that is built again saves to its folder, as the same run, or to a new one if given."""
    interrupted(tmp_path, 4)
    resume_from(tmp_path / "ck_000000000002.r8").save_checkpoint()
    resume_from(tmp_path, checkpoint_dir=tmp_path / "other").save_checkpoint()
    ids = {CheckpointStore(path.parent, keep=1, run_id="").load(path).run_id for path in tmp_path.rglob("ck_*")}

    assert len(ids) == 1
    assert (tmp_path / "other" / "ck_000000000001.r8").exists()


@pytest.mark.parametrize(
    ("batch_size", "goal"),
    [
        (None, {}), (2, {}), (8, {}), (None, {"num_epochs": 5}), (8, {"num_epochs": 5}), (2, {"num_steps": 60}),
        (None, {"initial_lr": 0.5}),
    ],
)  # fmt: skip
def test_changes_of_batch_size_budget_or_rate(tmp_path, batch_size, goal):
    """With a new batch size, budget or rate, every sample comes once per epoch, and progress counts samples."""
    seen = interrupted(tmp_path, 7, num_epochs=4)
    new = goal if batch_size is None else {**goal, "batch_size": batch_size}
    r8 = resume_from(tmp_path, **new)
    size = batch_size or 4
    assert r8.global_step * size == pytest.approx(28, abs=size - 1)
    assert r8.progress == pytest.approx(r8.global_step / {4: 20, 2: 40, 8: 12}[size] if not goal else r8.progress)
    rest = train(r8)

    epochs = [[row[1] for row in seen + rest if row[0] == epoch] for epoch in range(4)]
    assert [sorted(flat(batches)) for batches in epochs[:3]] == [list(range(20))] * 3
    assert r8.pace.is_finished
    assert max(lr for _, _, lr in rest) <= goal.get("initial_lr", 0.01)


def test_other_batch_sizes(tmp_path):
    """A budget in steps means as many samples unless it is given again; what is refitted resumes bit for bit."""
    interrupted(tmp_path, 4, num_steps=10)
    path = tmp_path / "ck_000000000004.r8"
    assert resume_from(path, batch_size=8, checkpoint_dir=tmp_path / "c").total_steps == 5
    assert resume_from(path, batch_size=8, num_steps=30, checkpoint_dir=tmp_path / "c").total_steps == 30
    with pytest.raises(ValueError, match=r"batch_size must be .* got 5; .*resume_from_checkpoint\(\) changes it"):
        make(20, batch_size=5, checkpoint_dir=tmp_path, resume="auto")
    whole = train(resume_from(path, batch_size=3, num_epochs=4, checkpoint_dir=tmp_path / "a"))
    r8 = resume_from(path, batch_size=3, num_epochs=4, checkpoint_dir=tmp_path / "b")
    _, indices, lr = next(steps(r8))
    r8.update_with_loss(batch_loss(indices))
    r8.save_checkpoint()

    assert [whole[0][1:], *train(resume_from(tmp_path / "b"))] == [(indices.tolist(), lr), *whole[1:]]


@pytest.mark.parametrize("budget", [{"num_epochs": 2}, {"num_steps": 9}, {"train_duration_seconds": 9.0}], ids=str)
@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        *[
            ({name: value}, rf"{name} must be a whole number >= 1")
            for name in ("batch_size", "num_samples")
            for value in (0, -4, 2.5, "4")
        ],
        ({"num_epochs": 0}, "num_epochs must be a number > 0 and finite"),
        ({"num_steps": 0}, "num_steps must be a number > 0 and finite"),
        ({"train_duration_seconds": 0}, "train_duration_seconds must be a number > 0 and finite"),
        ({"initial_lr": 0}, "initial_lr must be > 0 and finite"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be a whole number >= 1"),
    ],
    ids=str,
)
def test_wrong_new_argument_is_named(tmp_path, budget, wrong, text):
    """A new argument outside its range is refused by name, as when a run is built, and no file changes."""
    with make(checkpoint_dir=tmp_path, **budget) as r8:
        r8.save_checkpoint()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"{text}, got {next(iter(wrong.values()))!r}"):
        resume_from(tmp_path, **grouped(wrong))

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_samples_are_new(tmp_path):
    """Additional samples are unseen and come in the same epoch; the records of the others stay."""
    interrupted(tmp_path, 7, num_epochs=4)
    before = make(20, resume=tmp_path / "ck_000000000007.r8", num_epochs=4)
    r8 = resume_from(tmp_path, num_samples=30)
    np.testing.assert_equal(r8.table.loss[:20], before.table.loss)
    assert np.isnan(r8.table.loss[20:]).all()
    rest = train(r8)

    first = flat([indices for epoch, indices, _ in rest if epoch == 1])
    assert set(range(20, 30)) <= set(first)
    assert r8.table.usage_count.tolist() == [4] * 20 + [3] * 10


def test_fewer_samples_need_remap(tmp_path):
    """Fewer samples are refused unless remap says which they are; then each keeps its record."""
    interrupted(tmp_path, 7, num_epochs=4)
    before = make(20, resume=tmp_path / "ck_000000000007.r8", num_epochs=4)
    with pytest.raises(ValueError, match=r"num_samples must be at least that of the saved run \(20\).*got 10"):
        resume_from(tmp_path, num_samples=10)
    kept = np.array([3, 19, 0, -1, 5, 7, 11, -1, 13, 2])
    r8 = resume_from(tmp_path, num_samples=10, remap=kept)
    np.testing.assert_equal(r8.table.loss[kept >= 0], before.table.loss[kept[kept >= 0]])
    assert r8.table.usage_count[kept < 0].tolist() == [0, 0]
    train(r8)

    assert r8.pace.is_finished
    assert r8.table.usage_count[kept >= 0].tolist() == [4] * 8


@pytest.mark.parametrize(
    "remap", [[0, 1], [[0] * 10], [0.0] * 10, [20, *range(9)], [-2, *range(9)], [3, 3, *range(8)], ["a"] * 10]
)
def test_remap_is_checked(tmp_path, remap):
    """A remap of another length or kind, out of range, or with a sample twice, is refused."""
    interrupted(tmp_path, 7)
    with pytest.raises(ValueError, match=r"remap must be 10 distinct indices in \[0, 20\) or -1 for new samples, got"):
        resume_from(tmp_path, num_samples=10, remap=remap)


def test_saved_names_must_come_first(tmp_path):
    """With sample_ids, those of the saved run must be the first; others need remap."""
    names = [f"file{number}" for number in range(30)]
    interrupted(tmp_path, 7, sample_ids=names[:20])
    with pytest.raises(ValueError, match="sample_ids must begin with the 20 names of the saved run, got others"):
        resume_from(tmp_path, num_samples=30, sample_ids=names[::-1])

    assert resume_from(tmp_path, num_samples=30, sample_ids=names).global_step > 0
    remap = np.concatenate([np.full(10, -1), np.arange(19, -1, -1)])
    assert resume_from(tmp_path, num_samples=30, sample_ids=names[::-1], remap=remap).global_step > 0


def test_what_a_file_cannot_hold_must_be_given_again(tmp_path):
    """A user's schedule, policy or labels must be given again; the error names the missing one."""

    def falling(progress):
        return 0.1 - 0.05 * progress

    more = {"scheduler_mode": falling, "policy": Shuffle()}
    interrupted(tmp_path, 7, **more)
    with pytest.raises(
        ValueError, match=r"scheduler_mode must be given again, as a file cannot hold it: it was .*fall"
    ):
        resume_from(tmp_path, policy=Shuffle())
    with pytest.raises(
        ValueError, match=re.escape("policy must be given again, as a file cannot hold it: it was Shuffle()")
    ):
        resume_from(tmp_path, scheduler_mode=falling)

    assert resume_from(tmp_path, **more).global_step == 7
    CheckpointStore(tmp_path / "bare", keep=1, run_id="x").save(make().state_dict())
    with pytest.raises(ValueError, match="the checkpoint must hold the run's configuration, got none; use load_check"):
        resume_from(tmp_path / "bare")


@pytest.mark.filterwarnings("ignore:auto_find_lr")
def test_search_must_end_first(tmp_path):
    """During a learning-rate search the batch size cannot change."""
    model = Weights()
    more = {"auto_find_lr": True, "load_callback": model.load, "state_callback": model.get}
    r8 = make(40, checkpoint_dir=tmp_path, **more)
    r8.report(r8.draw(), 1.0)
    r8.save_checkpoint()
    with pytest.raises(ValueError, match="batch_size and num_samples must not change while auto_find_lr searches"):
        resume_from(tmp_path, None, model.load, batch_size=8, auto_find_lr=True, state_callback=model.get)


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 20),
    st.integers(0, 200),
    st.sampled_from(["balanced", "quartile", "shuffle"]),
    st.sampled_from(["short", "fill"]),
    st.integers(0, 3),
)
def test_every_sample_once_an_epoch_whatever_changes(num_samples, before, after, more, stop, policy, last_batch, out):
    """With another batch size, new samples and open batches, every epoch still takes every sample once."""
    arguments = {"num_epochs": 4, "policy": policy, "last_batch": last_batch, "clock": FakeClock()}
    first = make(num_samples, batch_size=before, **arguments)
    seen = []
    for _ in range(stop % (3 * first.steps_per_epoch)):
        ticket = first.draw()
        first.report(ticket, sample_losses(ticket.indices))
        seen.append((ticket.epoch, ticket.indices.tolist()))
    for _ in range(min(out, first.total_steps - first.global_step)):
        first.draw()
    second = make(num_samples + more, batch_size=after, **arguments)
    second.load_state_dict(fit_state(first.state_dict(), second.host.source))
    while (ticket := second.draw_if_any()) is not None:
        second.report(ticket, sample_losses(ticket.indices))
        seen.append((ticket.epoch, ticket.indices.tolist()))

    assert second.pace.is_finished
    for epoch in range(4):
        drawn = flat([indices for number, indices in seen if number == epoch])
        assert set(drawn) >= set(range(num_samples)), epoch
        if last_batch == "short":
            assert len(set(drawn)) == len(drawn)


def test_reader_of_the_document_reads_checkpoints(tmp_path):
    """The reader printed in docs/files.md reads a real file, and refuses a damaged one."""
    text = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "__metadata__" in block)
    names = {}
    exec(code, names)
    interrupted(tmp_path, 3)
    path = sorted(tmp_path.glob("ck_*"))[-1]
    tree, arrays = names["read"](path)
    loss = arrays[tree["scheduler"]["table"]["loss"]["__array__"]]
    content = path.read_bytes()
    path.write_bytes(content[:-1])

    assert (len(loss), tree["scheduler"]["pace"]["step"], tree["config"]["batch_size"]) == (20, 3, 4)
    with pytest.raises(AssertionError):
        names["read"](path)


@pytest.mark.parametrize(("before", "after"), [(SpikeGuard(), FiniteGuard()), (FiniteGuard(), SpikeGuard())])
def test_another_kind_of_guard_starts_fresh(tmp_path, before, after):
    """A run can resume with another kind of guard, with a warning; restores of earlier checkpoints work too."""
    model = Weights()
    more = {"num_epochs": 3, "save_callback": model.save, "state_callback": model.get}
    heard = []
    interrupted(tmp_path, 7, guard=before, **more)
    with pytest.warns(RuntimeWarning, match="guard is .*Guard"):
        r8 = make(
            20, guard=after, load_callback=model.load, checkpoint_dir=tmp_path, resume="auto", num_epochs=3,
            listeners=[heard.append],
        )  # fmt: skip
    r8.update_cpu_backup(model.get())
    with pytest.warns(RuntimeWarning, match="no test of the weights could be made, restored to step 7"):
        train(r8, bad={9})

    assert (r8.global_step, [type(event) for event in heard].count(events.RolledBack)) == (14, 1)
