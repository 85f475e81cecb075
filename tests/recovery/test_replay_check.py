"""The replay check tells a fault of memory or hardware from training that is not deterministic, and claims no more."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, Recovery, events
from learnit_r8.testing import FaultPlan, ToyTask, record_events


def run(*, order="before", noise=0.0, damage=0.0, ahead=1, check=True):
    """A run with one NaN; the notices, the end of the incident, and the steps done."""
    task, faults, heard, rng = ToyTask(512), FaultPlan(nan=[300]), record_events(), np.random.default_rng(0)

    def load(state, from_ram):
        task.load(state, from_ram)
        task.weights[0] = task.weights[0] + damage

    r8 = R8Scheduler(
        512, batch_size=32, num_steps=600, initial_lr=0.05, backup_every=20, state_callback=task.state,
        load_callback=load, recovery=Recovery(replay_check=check), listeners=[heard],
    )  # fmt: skip
    tickets = []
    while r8.global_step < 600:
        while len(tickets) < ahead and (ticket := r8.draw_if_any()) is not None:
            tickets.append(ticket)
        ticket = tickets.pop(0)
        scale = faults.loss(r8.global_step, 1.0)
        losses = task.losses(ticket.indices) * scale * (1 + noise * rng.random())
        if order == "after":
            task.step(ticket.lr, scale)
        if r8.report(ticket, losses) and order == "before":
            task.step(ticket.lr)
    return [event.text for event in heard.of(events.Notice)], heard.of(events.IncidentEnded), heard


@pytest.mark.parametrize("order", ["before", "after"])
def test_same_loss_says_that_nothing_has_changed(order):
    """If training is deterministic and nothing is wrong, the loss repeats, in both orders of the loop."""
    [said], [end], heard = run(order=order)

    assert "had the same loss" in said
    assert said in end.text
    assert len(heard.of(events.RolledBack)) == 1


@pytest.mark.parametrize("order", ["before", "after"])
def test_same_other_loss_twice_is_memory_or_hardware(order):
    """A restored state that was changed gives the same other loss twice."""
    [said], _, _ = run(order=order, damage=0.01)

    assert "Check the memory and the hardware" in said


def test_other_losses_claim_nothing():
    """If training is not deterministic, nothing is said about memory or hardware."""
    [said], _, _ = run(noise=0.01)

    assert "training is not deterministic, so this says nothing about memory or hardware" in said


def test_loops_that_work_ahead_are_not_checked():
    """If a batch drawn before the restore changes the weights first, nothing is compared."""
    said, _, _ = run(ahead=4)

    assert said == []


def test_off_by_default():
    """Nothing is replayed unless it was asked for."""
    said, _, _ = run(check=False)

    assert said == []
    with pytest.raises(TypeError, match="replay_check must be True or False, got 1"):
        Recovery(replay_check=1)
