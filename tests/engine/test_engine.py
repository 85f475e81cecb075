"""Tickets and reports: their order and kinds, and what the table learns from them."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import R8Scheduler, events
from learnit_r8.guard import FiniteGuard, Verdict
from tests.common import HardHalf
from tests.drive import (
    NAN,
    FakeClock,
    Weighing,
    advance_to,
    batch_loss,
    flat,
    make,
    sample_losses,
    steps,
    train,
)


def test_wrong_loss_changes_nothing():
    """A loss of a wrong kind or length is refused, the batch stays open, and nothing else changes."""
    r8 = make(clock=FakeClock())
    advance_to(r8, 2)
    next(r8.batch_iterator())
    before = r8.state_dict()
    # One mean a batch was reported before.
    for loss, text in ((np.ones((4, 1)), r"got shape \(4, 1\)"), (np.ones(4), r"\(one mean per batch\), got one loss")):
        with pytest.raises(ValueError, match=text):
            r8.update_with_loss(loss)
        np.testing.assert_equal(r8.state_dict(), before)

    assert r8.update_with_loss(1.0)


def test_no_graph_is_kept_alive():
    """A reported tensor can be freed: nothing of the scheduler holds it or its graph."""
    import gc
    import weakref

    r8 = make()
    weights = torch.ones(4, requires_grad=True)
    loss = (weights * 2).sum()
    gone = weakref.ref(loss)
    outcome = r8.report(r8.draw(), loss)
    del loss
    gc.collect()

    assert outcome
    assert gone() is None


def test_ticket_is_reported_once():
    """A second report of one ticket is a RuntimeError that changes nothing."""
    r8 = make()
    ticket = r8.draw()
    r8.report(ticket, 1.0)
    with pytest.raises(RuntimeError, match="ticket of step 0 was already reported or dropped, or is of another run"):
        r8.report(ticket, 1.0)

    assert r8.global_step == 1


def test_ticket_belongs_to_its_scheduler():
    """A ticket of another scheduler is refused."""
    r8, other = make(), make()
    r8.draw()
    ticket = other.draw()
    with pytest.raises(RuntimeError, match="is of another run"):
        r8.report(ticket, 1.0)

    assert (r8.global_step, other.global_step) == (0, 0)


def test_draw_beyond_the_budget_is_an_error():
    """draw() with every remaining step out, or none left, is a RuntimeError with the budget."""
    r8 = make(num_steps=2)
    first, second = r8.draw(), r8.draw()
    with pytest.raises(
        RuntimeError,
        match=r"draw\(\) was called with 2 steps reported or out after .* s, and the budget is Budget\(steps=2",
    ):
        r8.draw()
    r8.report(second, 1.0)
    r8.report(first, 1.0)

    assert r8.phase == "finished"


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 6), st.randoms(use_true_random=False))
def test_tickets_may_come_back_in_any_order(num_samples, batch_size, most_out, random):
    """With several open tickets reported in any order, an epoch still takes every sample exactly once."""
    r8 = make(num_samples, batch_size=batch_size, num_epochs=2)
    out, seen = [], []
    while r8.pace.next_step < r8.total_steps or out:
        if r8.pace.next_step < r8.total_steps and len(out) < most_out and (not out or random.random() < 0.6):
            out.append(r8.draw())
            seen.append((out[-1].epoch, out[-1].indices.tolist()))
        else:
            ticket = out.pop(random.randrange(len(out)))
            r8.report(ticket, batch_loss(ticket.indices))

    assert [sorted(flat(b for e, b in seen if e == epoch)) for epoch in (0, 1)] == [list(range(num_samples))] * 2
    assert r8.table.usage_count.tolist() == [2] * num_samples


def test_tickets_carry_their_step_and_rate():
    """A ticket has the step at which it will be reported, its epoch, and the rate of that step."""
    r8 = make(num_steps=4, scheduler_mode=lambda progress: 1 + progress)
    tickets = [r8.draw() for _ in range(4)]

    assert [(t.step, t.epoch, t.lr, t.weights) for t in tickets] == [
        (0, 0, 1.0, None), (1, 0, 1.25, None), (2, 0, 1.5, None), (3, 1, 1.75, None)
    ]  # fmt: skip


def test_outcome_is_true_if_the_step_counts():
    """An outcome is truthy for a good loss and falsy for a refused one."""
    r8 = make(load_callback=lambda state: None)
    r8.update_cpu_backup(0)
    good, bad = r8.report(r8.draw(), 1.0), r8.report(r8.draw(), NAN)

    assert (bool(good), good.verdict, good.rolled_back_to) == (True, Verdict.GOOD, None)
    assert (bool(bad), bad.verdict, bad.rolled_back_to) == (False, Verdict.NOT_FINITE, 0)


def test_the_loss_that_is_judged_is_the_weighted_mean():
    """So is what is expected of the batch, while the table learns the losses as they are."""
    heard = []
    r8 = make(8, policy=HardHalf(), num_epochs=4, listeners=[heard.append])
    while not r8.is_over:
        ticket = r8.draw()
        r8.report(ticket, sample_losses(ticket.indices))
    loss = [event.loss for event in heard if isinstance(event, events.StepDone)][-1]

    assert loss == pytest.approx(np.average(sample_losses(ticket.indices), weights=ticket.weights))
    assert loss != pytest.approx(batch_loss(ticket.indices))
    assert ticket.chunk.expected[ticket.slot] == pytest.approx(loss)
    assert r8.table.last.tolist() == pytest.approx(sample_losses(np.arange(8)).tolist())


def test_batch_iterator_refuses_weights():
    """batch_iterator() does not silently drop the weights of a policy."""
    with pytest.raises(
        RuntimeError, match=r"policy .*Weighing.* weights samples: use draw\(\) and report\(\), and ticket.weights"
    ):
        train(make(8, policy=Weighing()))


def test_expected_loss_is_what_the_table_knew():
    """With the additive rule, the expected loss of a batch is the mean of its samples' averages before it was drawn."""
    heard = []
    r8 = make(8, estimator="additive", listeners=[heard.append])
    expected = []
    for _, indices, _ in steps(r8):
        expected.append(float(r8.table.loss[indices].mean()))
        r8.update_with_loss(batch_loss(indices))
    told = [event.expected_loss for event in heard if isinstance(event, events.StepDone)]

    np.testing.assert_allclose(told, expected, rtol=1e-6)


def test_handed_back_batch_is_drawn_next():
    """With the same samples, whatever the user wrote into them, and the same rate; it is not counted."""
    r8 = make()
    ticket = r8.draw()
    samples = ticket.indices.tolist()
    ticket.indices[:] += 1000
    r8.host.hand_back(ticket)
    again = r8.draw()

    assert (again.indices.tolist(), again.lr, again.step) == (samples, ticket.lr, ticket.step)


def test_single_sample_may_come_squeezed():
    """The loss of a last batch of one sample may be 0-dim."""
    r8 = make(5, num_epochs=1)
    for _, indices, _ in steps(r8):
        losses = np.full(len(indices), 2.0)
        r8.update_with_loss(losses if len(indices) > 1 else losses.squeeze())

    assert r8.table.loss.tolist() == [2.0] * 5


def test_report_takes_tickets_only():
    """Anything but a ticket is a TypeError."""
    with pytest.raises(TypeError, match=r"ticket must be what draw\(\) returned, got 3"):
        make().report(3, 1.0)


def test_a_state_callback_alone_is_said_as_the_run_starts():
    """Backups that nothing can put back are a mistake; with a load_callback, or checkpoints, nothing is said."""
    with pytest.warns(RuntimeWarning, match="state_callback was given without load_callback"):
        R8Scheduler(8, batch_size=4, num_epochs=1, state_callback=dict).draw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        R8Scheduler(8, batch_size=4, num_epochs=1, state_callback=dict, load_callback=print).draw()


class Listening(FiniteGuard):
    """A guard that writes down what it is told."""

    def __init__(self):
        object.__setattr__(self, "told", [])

    def judge(self, state, loss, expected=NAN, typical=NAN, lr=NAN):
        self.told.append((expected, typical, lr))
        return super().judge(state, loss, expected, typical, lr)


def test_guard_expects_no_less_of_a_batch_by_rough_estimates():
    """Means of batches are too rough to expect a batch to be easier than a typical one; losses of samples are not."""
    rough, exact = Listening(), Listening()
    for guard, read in ((rough, np.mean), (exact, np.asarray)):
        r8 = make(64, num_epochs=9, guard=guard, policy="shuffle")
        for _, indices, _ in steps(r8):
            r8.update_with_loss(read(1 + indices / 9.0))

    assert min(expected / typical for expected, typical, _ in rough.told[32:]) == 1
    assert min(expected / typical for expected, typical, _ in exact.told[32:]) < 0.7


@pytest.mark.parametrize(("ahead", "is_lowered"), [(1, True), (3, False)])
def test_guard_hears_the_rate_of_the_schedule(ahead, is_lowered):
    """While recovery holds the rate down, and however many batches are drawn ahead: that of the step it judges."""
    guard = Listening()
    r8 = make(48, num_epochs=2, guard=guard)
    if is_lowered:
        r8.controller.limit.restored()
        r8.controller.is_quiet = False
    rates, out = [], []
    while not r8.is_over:
        while len(out) < ahead and (ticket := r8.draw_if_any()) is not None:
            out.append(ticket)
        rates.append(out[0].lr)
        r8.report(out.pop(0), 1.0)

    assert [lr for _, _, lr in guard.told] == [r8.schedule(step / 24) for step in range(24)]
    assert rates[0] == r8.schedule(0) / (1 + is_lowered)
