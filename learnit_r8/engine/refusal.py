"""The handling of batches whose loss is not good, and of those that get no loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import events
from ..guard.verdict import Verdict
from ..sampling.ticket import Outcome, Ticket
from . import step

if TYPE_CHECKING:
    from .engine import Engine

ABANDONED = (
    "the batch of step {step} was not reported with update_with_loss(); such batches are drawn once more at the end of "
    "the epoch, and count as refused steps if they are not reported then. For a loader that works ahead use draw() and "
    "report()."
)


def report_in_turn(run: Engine, ticket: Ticket, judged: step.Judged) -> Outcome | None:
    """Report a loss that is not simply good; None if it must be judged again, as another call came first."""
    with run.turns.take("report", ticket.step) as turn:
        if not run.is_now(judged):
            return None
        turn.is_changing = True
        verdict, put_to = _answer(run, ticket, judged)
        run.pace.begin_break()
        rate = run.search.lr or (run.rates.now if judged.lr != judged.lr else run.controller.lr(judged.lr))
        return Outcome(verdict, rate, put_to)


def _answer(run: Engine, ticket: Ticket, judged: step.Judged) -> tuple[Verdict, int | None]:
    """Act on a verdict; returns the final verdict, and the step of the state that was put back."""
    reading, verdict = judged.reading, judged.verdict
    if ticket.epoch < 0:
        put_to = run.search.take(ticket.batch, reading.mean, ticket.lr, refused=verdict is not Verdict.GOOD)
        run.rates.use_found()
        return verdict, put_to
    undo = run.persistence.callbacks.undo
    if undo is not None and verdict is not Verdict.GOOD:
        undo()
    if verdict is Verdict.PROBED or ticket.chunk.is_probe:
        return _test(run, ticket, judged)
    if verdict is Verdict.GOOD:
        _learn(run, ticket, judged)
        return verdict, None
    may_come_again = (
        verdict is Verdict.EARLY
        and run.plan.can_put_back(ticket.batch)
        # Others are still to be drawn in this epoch.
        and run.pace.next_place < (ticket.epoch + 1) * run.plan.steps_per_pass
        and not run.pace.is_counted
    )
    if may_come_again and not run.controller.is_far(reading.mean):
        # It may be its batch, and most such losses are harmless: that comes again, so this was no step but a test.
        run.plan.put_back(ticket.batch)
        run.pace.num_out -= 1
        run.pace.count_probe(takes_place=run.pace.leaves_out)
        inquiry = run.controller.inquire(run.pace.step, judged.lr)
        return verdict, inquiry.suspected(reading.mean, leaves_out=run.pace.leaves_out)
    run.sentry.keep(judged.verdict, judged.memory)
    close_unlearned(run, ticket)
    if verdict is Verdict.SKIPPED:
        return verdict, None
    put_to = run.controller.refused(
        ticket, reading, verdict, step=run.pace.step, lr=judged.lr, most_steady=_most_steady(run, ticket.epoch),
        own_rate=run.rates.own,
    )  # fmt: skip
    return verdict, put_to


def _test(run: Engine, ticket: Ticket, judged: step.Judged) -> tuple[Verdict, int | None]:
    """Take the loss of a batch that tests weights, or that was trained on with weights under test."""
    experiment, chunk = run.controller.experiment, ticket.chunk
    if not experiment.takes(ticket):
        # It was drawn for weights that may be others by now.
        close_unlearned(run, ticket)
        return Verdict.PROBED, None
    if experiment.is_at_alarm and not experiment.is_fine(judged.reading.mean):
        # Some losses are high because of their step, as in a trial of what happens then: that one is over now.
        experiment.lose(ticket)
        run.pace.num_out += chunk.is_extra
        chunk.is_probe = chunk.is_extra = experiment.is_at_alarm = False
        close_unlearned(run, ticket)
        return Verdict.PROBED, None
    inquiry = run.controller.inquire(run.pace.step + (not chunk.is_probe), judged.lr)
    put_to = inquiry.probed(ticket, judged.reading.mean, unit=run.rates.shown(1.0))
    close_unlearned(run, ticket)
    return Verdict.PROBED, put_to


def _learn(run: Engine, ticket: Ticket, judged: step.Judged) -> None:
    ended = step.learn(run, ticket, judged)
    if run.announcer.is_heard:
        run.emitter.stop_timing()
        step.tell(run, ticket, judged, ended)


def close_unlearned(run: Engine, ticket: Ticket) -> None:
    """Close a batch that nothing is learned from, and count it."""
    chunk, pace = ticket.chunk, run.pace
    run.plan.close(ticket.batch)
    pace.num_out -= not chunk.is_extra
    if chunk.is_probe:
        pace.count_probe(takes_place=not chunk.is_extra)
    else:
        pace.step += 1
    if not chunk.is_extra:
        step.tell_epoch(run, ticket, step.end_epoch(run))


def discard(run: Engine, ticket: Ticket) -> None:
    """Count a batch whose training was undone before its loss was judged; see `Engine.discard`."""
    if ticket.epoch < 0:
        run.search.skip(ticket.batch)
        run.rates.use_found()
        return
    close_unlearned(run, ticket)
    run.controller.experiment.lose(ticket)


def answer_damage(run: Engine, array: str) -> None:
    """Look into a model that holds non-finite numbers although its losses were finite."""
    if run.search.is_on:
        run.persistence.backup_timer.note_done(run.pace.step)
        return
    scheduled = run.rates.scheduled(run.pace.progress_at(run.pace.step))
    with run.turns.take("between_steps", run.pace.step, is_changing=True):
        run.controller.inquire(run.pace.step, scheduled).damaged(array)


def check_weights(run: Engine) -> bool:
    """Look at the weights now, and put back what is not finite; returns whether all was finite."""
    persistence = run.persistence
    damage = persistence.backup_timer.damage_now(persistence.callbacks.state)
    if damage:
        run.announcer.tell(events.DamageFound, array=damage)
        answer_damage(run, damage)
    return not damage


def look_back(run: Engine) -> None:
    """Look at the progress of the first steps; see `Inquiry.look_back`."""
    scheduled = run.rates.scheduled(run.pace.progress_at(run.pace.step))
    run.persistence.backup_timer.take_in(run.persistence.callbacks.state)
    with run.turns.take("between_steps", run.pace.step, is_changing=True):
        # A trial that ends here goes on with its own weights, of which a checkpoint may follow.
        run.controller.inquiry.hide_true()
        run.controller.look_back(step=run.pace.step, lr=scheduled)


def look_last(run: Engine, *, may_probe: bool, closing: bool = False) -> bool:
    """Whether a probe is to be drawn before the run ends; see `Inquiry.looks_last`."""
    is_end = closing or (run.pace.is_finished and not run.pace.num_out)
    if not is_end or run.search.is_on or not run.controller.inquiry.may_look_last(run.pace.step):
        return False
    scheduled = run.rates.scheduled(1.0)
    with run.turns.take("draw", run.pace.step, is_changing=True):
        return run.controller.inquire(run.pace.step, scheduled).looks_last(may_probe=may_probe)


def _most_steady(run: Engine, epoch: int) -> int:
    # The first pass must see every sample, and one incident may cost at most a quarter of an epoch.
    return run.plan.steps_per_pass // 4 if epoch > 0 and run.feed is None else 0


def give_up(run: Engine, ticket: Ticket, on_purpose: bool) -> None:
    """Give up a batch that will not be reported; see `Engine.give_up`."""
    if ticket.epoch < 0:
        run.search.skip(ticket.batch)
        run.rates.use_found()
        return
    run.controller.experiment.lose(ticket)
    is_probe = ticket.chunk.is_probe
    # A trainer that counts its batches has no turn left for one that comes again, and ends the epoch without it.
    drawn_again = is_probe or run.plan.abandon(ticket.batch, may_come_again=not run.pace.is_counted)
    if is_probe:
        close_unlearned(run, ticket)
    else:
        run.pace.num_out -= 1
    run.announcer.tell(events.BatchAbandoned, epoch=ticket.epoch, drawn_again=drawn_again)
    if not on_purpose:
        run.announcer.warn_once("abandoned", ABANDONED.format(step=ticket.step))
    if not drawn_again:
        run.pace.step += 1
        step.tell_epoch(run, ticket, step.end_epoch(run))
