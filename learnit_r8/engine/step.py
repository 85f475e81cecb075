"""A step: how a reported loss is judged, and what a good one changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..guard.monitor import MOST_SUSPICION, Judgement
from ..guard.verdict import Verdict
from ..sampling.chunk import OPEN, OUT_AGAIN
from ..sampling.ticket import Ticket
from ..table.losses import EXACT, Reading, check_kind, read_loss, read_number
from .tally import Tally

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
        judgement: What the guard makes of it.
        lr: The scheduled learning rate after it.
        is_calm: Whether the guard suspects nothing, where recovery asks.
        suspicion: How near the guard is to refusing after it; NaN unless somebody listens.
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
    """Read a loss and judge it; asks guard and schedule, which may raise, and changes nothing. See `Engine.report`."""
    if not isinstance(ticket, Ticket):
        raise TypeError(f"ticket must be what draw() returned, got {ticket!r}.")
    if run.persistence.is_restoring and run.turns.is_mine:
        raise RuntimeError(f"load_callback must not report losses, got one of step {ticket.step}.")
    _, epoch, indices, rate, _, _, (chunk, slot, _) = ticket
    table, sentry, pace, controller = run.table, run.sentry, run.pace, run.controller
    step, losses, state = pace.step, sentry._losses, chunk.states[slot]
    # As `Batch.is_out` says, without its call: this is asked at every step.
    if not (slot < chunk.drawn if state == OPEN else state == OUT_AGAIN) or chunk.table is not table:
        if run.turns.busy is not None:
            # What another call is doing with it, or has left half done, is the reason.
            run.turns.wait("report", step)
        raise RuntimeError(
            f"ticket of step {ticket.step} was reported or given up before, or is not of this run; report each "
            "batch once."
        )
    reading = read_loss(loss, len(indices), part_size)
    if len(indices) == 1 and table.storage.part_size == EXACT:
        # The loss of a single sample, without its dimension.
        reading = Reading(reading.mean, np.atleast_1d(reading.means), EXACT, reading.lowest)
    if grad_norm is not None:
        grad_norm = read_number("grad_norm", grad_norm)
    kind = EXACT if table.batch_size == 1 else reading.part_size
    if kind != table.storage.part_size:
        check_kind(kind, table.storage.part_size)
    if predictions is not None:
        reading = table.storage.evidence.with_predictions(reading, predictions, kind)
    if epoch < 0:
        _, verdict = sentry.guard.judge(sentry.guard.begin(), reading.mean)
        judgement = sentry.unjudged(verdict)
        return Judged(step, losses, state, reading, kind, math.nan, judgement, math.nan, True, math.nan, False)
    expected, typical = table.learner.with_trend(chunk.expected[slot]), table.learner.with_trend(chunk.typical)
    predicted, is_usual = expected, True
    if expected < typical and table.storage.part_size != EXACT:
        # Estimates from batch means are too rough to expect less of a batch that was chosen by them.
        predicted, is_usual = typical, chunk.sweep >= 0
    is_quiet = controller.is_quiet and not controller.quarantine.is_watching
    if not controller.is_quiet and controller.tests(ticket):
        if grad_norm is not None and not math.isfinite(grad_norm):
            reading = reading._replace(mean=math.nan)
        judgement = sentry.unjudged(Verdict.PROBED)
    else:
        # The rate of its own step, before recovery lowers it; a batch drawn later may have another one.
        judged_lr = rate if controller.is_quiet else run.scheduled_lr(pace.progress_at(ticket.step))
        judgement = sentry.judge(
            reading.mean, predicted, typical, judged_lr, grad_norm=grad_norm, skipped=skipped, is_usual=is_usual
        )
        if controller.is_early and judgement.verdict is Verdict.GOOD and controller.is_suspicious(reading.mean):
            judgement = sentry.unjudged(Verdict.EARLY)
    lr = run.scheduled_lr(pace.progress_at(step + 1))
    is_calm, suspicion = True, math.nan
    if controller.is_calm_due:
        is_calm = sentry.suspicion_of(judgement) < 2 * MOST_SUSPICION
    if run.announcer.is_heard:
        suspicion = sentry.suspicion_of(judgement)
    is_plain = (
        judgement.verdict is Verdict.GOOD
        and is_quiet
        and kind == table.storage.part_size
        and (reading.lowest >= 0 or table.storage.are_offsets)
        and chunk.sweep == run.plan.num_sweeps
    )
    return Judged(step, losses, state, reading, kind, expected, judgement, lr, is_calm, suspicion, is_plain)


def is_current(run: Engine, ticket: Ticket, judged: Judged) -> bool:
    """Whether nothing has changed since a loss was judged."""
    chunk, slot, _ = ticket.batch
    return (
        run.pace.step == judged.step
        and run.sentry._losses is judged.losses
        and chunk.states[slot] == judged.state
        and chunk.table is run.table
    )


def learn(run: Engine, ticket: Ticket, judged: Judged) -> Tally | None:
    """Keep a good loss, from which the table learns when its chunk is used up or somebody reads it; advance the run.

    Returns:
        The tally of the epoch, if it has ended with this step.
    """
    table, pace, controller, reading = run.table, run.pace, run.controller, judged.reading
    run.sentry.keep(judged.judgement)
    table.storage.part_size = judged.kind
    if reading.predictions is not None:
        table.storage.evidence.begin(reading.predictions.num_classes)
    believed = table.storage.batch_trend.believed(reading) if table.storage.batch_trend.is_early else reading
    trend = table.learner.observe(believed.mean, believed.lowest, reading.mean)
    pace.num_out -= 1
    pace.step += 1
    run._tally.add(reading.mean, len(ticket.indices))
    controller.accepted(reading.mean, ticket, judged.lr, is_calm=judged.is_calm)
    pace.begin_break()
    ended = end_epoch(run)
    run.plan.report(
        ticket.batch, believed.mean if table.batch_size == 1 else believed.means, trend, reading.predictions
    )
    return ended


def end_epoch(run: Engine) -> Tally | None:
    """Begin another tally if an epoch has just ended; returns the one that is over."""
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
        suspicion=judged.suspicion,
    )
    tell_epoch(run, ticket, ended)


def tell_epoch(run: Engine, ticket: Ticket, ended: Tally | None) -> None:
    """Tell listeners of an epoch that has ended with the step of a batch; None for none."""
    if ended is not None:
        run.emitter.epoch_done(
            epoch=run.pace.epoch - 1,
            progress=run.pace.progress,
            lr=ticket.lr,
            tally=ended,
            seconds=run.pace.seconds,
        )
