"""A step: how a reported loss is judged, and what a good one changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..guard.monitor import MOST_SUSPICION, Judgement
from ..guard.verdict import GOOD, Verdict
from ..sampling.chunk import OPEN, OUT_AGAIN, REPORTED
from ..sampling.tally import Tally
from ..sampling.ticket import Ticket, new_tuple
from ..table.losses import EXACT, Reading, check_kind, read_loss, read_number

if TYPE_CHECKING:
    from .engine import Engine


class Judged(NamedTuple):
    """A reported loss, judged; nothing is changed yet.

    Attributes:
        step: Steps reported before it.
        losses: The guard's state before it.
        state: The state of its batch.
        reading: The loss.
        kind: What it is the loss of: see `SampleTable.part_size`.
        expected: The loss that the table expected.
        judgement: The guard's judgement of it.
        lr: The scheduled learning rate after it.
        is_calm: Whether the guard suspects nothing, where recovery asks.
        suspicion: How close the guard is to refusing after it; NaN unless somebody listens.
        is_plain: Whether it is good, and there is no trouble.
    """

    step: int
    losses: Any
    state: int
    reading: Reading
    kind: int
    expected: float
    judgement: Judgement
    lr: float
    is_calm: bool
    suspicion: float
    is_plain: bool


def judge(
    run: Engine, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool, predictions: Any
) -> Judged:
    """Read a loss and judge it; asks guard and schedule, and changes nothing. See `R8Scheduler.report`."""
    if type(ticket) is not Ticket:
        raise TypeError(f"ticket must be what draw() returned, got {ticket!r}.")
    _, epoch, indices, rate, _, _, (chunk, slot, _) = ticket
    table, sentry, pace, controller = run.table, run.sentry, run.pace, run.controller
    step, losses, state = pace.step, sentry._losses, chunk.states[slot]
    # As `Batch.is_out` says, without its call: this is asked at every step.
    if not (slot < chunk.drawn if state == OPEN else state == OUT_AGAIN) or chunk.table is not table:
        _refuse_ticket(run, ticket)
    if run.turns.busy is not None:
        _refuse_restoring(run, ticket)
    storage, is_drawn = table.storage, run.feed is None
    reading = read_loss(loss, len(indices), part_size) if is_drawn else chunk.read(loss)  # type: ignore[attr-defined]
    if is_drawn and len(indices) == 1 and storage.part_size == EXACT:
        # The loss of a single sample, without its dimension.
        reading = Reading(reading.mean, np.atleast_1d(reading.means), EXACT, reading.lowest)
    mean, _, kind, lowest, _ = reading
    if grad_norm is not None:
        grad_norm = read_number("grad_norm", grad_norm)
    if storage.is_single:
        kind = EXACT
    is_plain = kind == storage.part_size
    if not is_plain and is_drawn:
        check_kind(kind, storage.part_size)
    if predictions is not None and storage.num_samples:
        reading = storage.evidence.with_predictions(reading, predictions, kind)
    if epoch < 0:
        _, verdict = sentry.guard.judge(sentry.guard.begin(), mean)
        judgement = sentry.unjudged(verdict)
        return Judged(step, losses, state, reading, kind, math.nan, judgement, math.nan, True, math.nan, False)
    expected, typical = chunk.expected[slot], chunk.typical
    # As `LossLearner.with_trend` says, without two calls.
    if kind != EXACT and storage.estimator == "relative":
        trend = storage.batch_trend.value
        if storage.are_offsets:
            expected, typical = expected + trend, typical + trend
        else:
            expected, typical = expected * trend, typical * trend
    predicted, is_usual = expected, True
    if expected < typical and kind != EXACT:
        # Estimates from batch means are too rough to expect less of a batch that was chosen by them.
        predicted, is_usual = typical, chunk.sweep >= 0
    is_quiet = controller.is_quiet
    # The guard hears the rate of the step that it judges, before recovery lowers it.
    judged_rate = rate if is_quiet else run.scheduled_lr(pace.progress_at(ticket.step))
    if run.own_rate is not None:
        judged_rate = run.own_rate
    if not is_quiet and controller.experiment.tests(ticket):
        if grad_norm is not None and not math.isfinite(grad_norm):
            reading = reading._replace(mean=math.nan)
        judgement = sentry.unjudged(Verdict.PROBED)
    else:
        judgement = sentry.judge(
            mean, predicted, typical, judged_rate, grad_norm=grad_norm, skipped=skipped, is_usual=is_usual
        )
        if controller.is_early and judgement.verdict is GOOD and controller.is_suspicious(mean):
            # A batch that comes again was looked into the first time.
            judgement = sentry.unjudged(Verdict.EARLY) if state == OPEN or controller.is_far(mean) else judgement
    steps = pace.budget.steps
    progress = (step + 1) / steps if steps is not None and step + 1 < steps else pace.progress_at(step + 1)
    last, lr = run._scheduled
    if progress != last:
        lr = run.scheduled_lr(progress)
    is_plain = (
        is_plain
        and is_quiet
        and judgement.verdict is GOOD
        and (lowest >= 0 or storage.are_offsets)
        and chunk.sweep == run.plan._planner.num_sweeps
        and not controller.quarantine.is_watching
    )
    is_calm, suspicion = True, math.nan
    if controller.is_calm_due:
        is_calm = sentry.suspicion_of(judgement) < 2 * MOST_SUSPICION
    if run.announcer.is_heard:
        suspicion = sentry.suspicion_of(judgement)
    return new_tuple(
        Judged, (step, losses, state, reading, kind, expected, judgement, lr, is_calm, suspicion, is_plain)
    )


def _refuse_ticket(run: Engine, ticket: Ticket) -> None:
    """Raise RuntimeError for a ticket that is not out."""
    _refuse_restoring(run, ticket)
    if run.turns.busy is not None:
        # What another call is doing with it, or has left half done, is the reason.
        run.turns.wait("report", run.pace.step)
    raise RuntimeError(
        f"ticket of step {ticket.step} was already reported or dropped, or is of another run; report each batch once."
    )


def _refuse_restoring(run: Engine, ticket: Ticket) -> None:
    if run.persistence.is_restoring and run.turns.is_mine:
        raise RuntimeError(f"load_callback must not report losses, got one of step {ticket.step}.")


def learn(run: Engine, ticket: Ticket, judged: Judged) -> Tally | None:
    """Keep a good loss, from which the table learns when its chunk is used up or somebody reads it; advance the run.

    Returns:
        The tally of the epoch, if it has ended with this step.
    """
    # Fields are unpacked, as reading each by its name takes three times as long.
    _, _, _, reading, kind, _, judgement, lr, is_calm, _, is_plain = judged
    mean, means, _, lowest, predictions = reading
    table, pace, storage, batch = run.table, run.pace, run.table.storage, ticket.batch
    trend, tally, ended = storage.batch_trend, run._tally, None
    run.sentry.keep(judgement)
    if trend.is_early or lowest < 0:
        storage.part_size = kind
        mean, means, _, lowest, _ = trend.believed(reading) if trend.is_early else reading
        before = table.learner.observe(mean, lowest, reading.mean)
    else:
        before = trend.value
        trend.value = before + trend.weight * (mean - before)
    if predictions is not None:
        storage.evidence.make_records(predictions)
    pace.num_out -= 1
    pace.step += 1
    tally.num_good += 1
    tally.total += reading[0]
    tally.samples += len(ticket.indices)
    run.controller.accepted(reading[0], ticket, lr, is_calm=is_calm)
    if pace.budget.steps is None:
        pace.begin_break()
    if not pace.step % run.plan.steps_per_pass:
        ended = end_epoch(run)
    # The chunk keeps it. The table learns the whole chunk at once, when that is used up or somebody reads the table.
    means = mean if storage.is_single else means
    if is_plain and predictions is None:
        chunk, slot, _ = batch
        chunk.reports[slot], chunk.trends[slot], chunk.states[slot] = means, before, REPORTED
    else:
        storage.part_size = kind
        run.plan.report(batch, means, before, predictions)
    return ended


def end_epoch(run: Engine) -> Tally | None:
    """Start another tally if an epoch has just ended; returns the one that is over."""
    if run.pace.step % run.plan.steps_per_pass:
        return None
    ended, run._tally, run._epoch_ended = run._tally, Tally(), True
    return ended


def tell(run: Engine, ticket: Ticket, judged: Judged, ended: Tally | None) -> None:
    """Tell listeners of a step that was learned from, and of the epoch that ended with it."""
    run.emitter.step_done(
        ticket,
        progress=run.pace.progress,
        loss=judged.reading.mean,
        expected_loss=judged.expected,
        lr=run.shown_lr(ticket.lr),
        suspicion=judged.suspicion,
    )
    tell_epoch(run, ticket, ended)


def tell_epoch(run: Engine, ticket: Ticket, ended: Tally | None) -> None:
    """Tell listeners of an epoch that has ended with the step of a batch; None for none."""
    if ended is not None:
        run.emitter.epoch_done(
            epoch=run.pace.epoch - 1,
            progress=run.pace.progress,
            lr=run.shown_lr(ticket.lr),
            tally=ended,
            seconds=run.pace.seconds,
        )
