"""Planned faults, and a rehearsal with them."""

import errno

import pytest
import torch

from learnit_r8 import Checkpoints, R8Scheduler, events
from learnit_r8.engine.settings import grouped
from learnit_r8.testing import FaultPlan, ToyTask, record_events
from tests.drive import NAN, make


def test_faults_strike_once():
    """Every fault happens once, at its step."""
    faults = FaultPlan(nan=[3], inf=[4], spike=[5], spike_by=-2.0)
    twice = [[faults.loss(step, 1.0) for step in range(7)] for _ in range(2)]

    assert repr(twice[0]) == "[1.0, 1.0, 1.0, nan, inf, -2.0, 1.0]"
    assert twice[1] == [1.0] * 7
    assert faults.struck == [(3, "nan"), (4, "inf"), (5, "spike")]


def test_drift_adds_up():
    """Every step of a drift raises all later losses."""
    faults = FaultPlan(drift=[1, 2], drift_by=2.0)

    assert [faults.loss(step, 1.0) for step in range(4)] == [1.0, 2.0, 4.0, 4.0]


def test_rates_are_multiplied():
    """A rate at a step with a fault is lr_by times as high."""
    faults = FaultPlan(lr=[1], lr_by=10.0)

    assert [faults.rate(step, 0.5) for step in range(3)] == [0.5, 5.0, 0.5]


def test_faults_change_the_gradients():
    """The fault of a tensor is part of its graph."""
    weight = torch.ones(1, requires_grad=True)
    FaultPlan(nan=[0]).loss(0, (weight * 2).sum()).backward()

    assert weight.grad.isnan().all()


def test_callback_fails_at_the_next_call():
    """A callback raises at its first call at or after the step, once, and then works."""
    calls = []
    faults = FaultPlan(state=[5])
    state = faults.callbacks(state=lambda: calls.append(1))["state_callback"]
    state()
    faults.loss(7, 1.0)
    with pytest.raises(RuntimeError, match="state_callback fails on purpose after step 7"):
        state()
    state()

    assert len(calls) == 2


@pytest.mark.parametrize(("kind", "error"), [("save", RuntimeError), ("disk", OSError)])
def test_failing_save_leaves_a_file_behind(tmp_path, kind, error):
    """A save that fails has written its file, a full disk half of it, as in life."""
    faults = FaultPlan(**{kind: [0]})
    save = faults.callbacks(save=lambda state, path: path.write_bytes(bytes(100)))["save_callback"]
    with pytest.raises(error) as caught:
        save({}, tmp_path / "model")

    assert (tmp_path / "model").stat().st_size == (50 if kind == "disk" else 100)
    assert kind == "save" or caught.value.errno == errno.ENOSPC


def test_full_disk_never_ends_a_run(tmp_path):
    """A rehearsal: the disk is full at one of four checkpoints; the run goes on, and three are there."""
    task, heard = ToyTask(64), record_events()
    faults = FaultPlan(disk=[4])
    r8 = R8Scheduler(
        64, batch_size=16, num_epochs=4, checkpoint_dir=tmp_path, checkpoint_every=Checkpoints(keep_checkpoints=9),
        listeners=[heard],
        **grouped(faults.callbacks(state=task.state, load=task.load, save=task.save)),
    )  # fmt: skip

    def run():
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                loss = faults.loss(r8.global_step, task.losses(indices).mean())
                task.step(lr)
                r8.update_with_loss(loss)

    with pytest.warns(RuntimeWarning, match="No space left on device"):
        run()

    assert len(heard.of(events.CheckpointSaved)) == 3
    assert r8.progress == 1


def test_load_fault_is_told_from_ram():
    """The wrapped load callback hands on what the scheduler gives, with or without from_ram."""
    got = []
    faults = FaultPlan()
    r8 = make(**faults.callbacks(load=lambda state: got.append(state)))
    r8.update_cpu_backup({"w": 1})
    with pytest.warns(RuntimeWarning, match="restored to step 0"):
        r8.report(r8.draw(), NAN)

    assert got == [{"w": 1}]


# fmt: off
MISTAKES = [
    *[(lambda steps=steps: FaultPlan(nan=steps), TypeError, "nan must be a list of steps, got")
      for steps in (3, "12", None)],
    *[(lambda step=step: FaultPlan(inf=[step]), ValueError, "inf must be a whole number >= 0, got")
      for step in (-1, 1.5, True)],
    *[(lambda name=name: FaultPlan(**{name: NAN}), ValueError, rf"{name} must be a finite number, got nan")
      for name in ("spike_by", "drift_by", "lr_by")],
    *[(lambda name=name: FaultPlan(**{name: [3]}).callbacks(), ValueError,
       rf"{name} must be empty without that callback, got \[3\]")
      for name in ("state", "load", "save", "disk")],
    (lambda: FaultPlan().callbacks(load=3), TypeError, "load_callback must be a function or None, got 3"),
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """By the argument or call, with what was given."""
    with pytest.raises(error, match=text):
        act()
