"""The judgement of a reported loss: what it is, whether it can be learned from, and the rate after it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ..guard.monitor import Memory
from ..guard.verdict import GOOD, Verdict
from ..recovery.state import LOOK_MASK
from ..sampling.chunk import OPEN
from ..sampling.ticket import Ticket
from ..table.losses import EXACT, Reading, read_number

if TYPE_CHECKING:
    from ..sampling.chunk import Chunk, FollowedChunk
    from ..table.storage import SampleStorage
    from .run import Run


class Report(NamedTuple):
    """What is reported of a batch; see `R8Scheduler.report`."""

    loss: Any
    part_size: int | None = None
    grad_norm: Any = None
    skipped: bool = False
    predictions: Any = None


class Judged(NamedTuple):
    """A reported loss, judged; nothing is changed yet.

    Attributes:
        step: Steps reported before it.
        losses: The guard's state before it.
        state: The state of its batch before it.
        reading: The loss.
        expected: The loss that the table expected.
        verdict: The guard's verdict.
        memory: What the sentry remembers after it.
        lr: The scheduled learning rate after it; NaN during a search for one.
        suspicion: How close the guard is to refusing after it; NaN unless somebody asks.
        is_plain: Whether it is good, and there is no trouble.
    """

    step: int
    losses: Any
    state: int
    reading: Reading
    expected: float
    verdict: Verdict
    memory: Memory
    lr: float
    suspicion: float
    is_plain: bool


def judge(run: Run, ticket: Ticket, report: Report) -> Judged:
    """Read a loss and judge it; asks guard and schedule, and changes nothing.

    Raises:
        RuntimeError: the batch is not out, or the load callback reports it.
        TypeError, ValueError: the loss is not what is expected of a batch.
    """
    chunk, slot = ticket.chunk, ticket.slot
    table, sentry, controller, rates, step = run.source.table, run.sentry, run.controller, run.rates, run.pace.step
    losses, state = sentry.memory, chunk.states[slot]
    if not ticket.batch.is_out or chunk.table is not table or run.turns.busy is not None:
        _check_out(run, ticket)
    reading = chunk.read(slot, report.loss, report.part_size, report.predictions)
    norm = None if report.grad_norm is None else read_number("grad_norm", report.grad_norm)
    if ticket.epoch < 0:
        # A loss of the search for a rate, which no other loss says anything about.
        _, verdict = sentry.guard.judge(sentry.guard.begin(), reading.mean)
        return Judged(step, losses, state, reading, math.nan, verdict, sentry.present, math.nan, math.nan, False)
    storage, is_quiet, lr = table.storage, controller.is_quiet, ticket.lr if rates.own is None else rates.own
    if not is_quiet and controller.experiment.tests(ticket):
        if norm is not None and not math.isfinite(norm):
            # What counts is whether the weights are sound, and a norm shows that, too.
            reading = reading._replace(mean=math.nan)
        expected, verdict, memory = math.nan, Verdict.PROBED, sentry.present
    else:
        if not is_quiet and rates.own is None:
            # The guard hears the rate of the step that it judges, before recovery lowers it.
            lr = rates.scheduled_at(ticket.step)
        expected, predicted, typical, is_usual = _expect(storage, chunk, slot, reading.part_size)
        verdict, memory = sentry.judge(reading.mean, predicted, typical, lr, norm, report.skipped, is_usual)
        is_early = controller.is_early and verdict is GOOD and controller.is_suspicious(reading.mean)
        # A batch that comes again was looked into the first time.
        if is_early and (state == OPEN or controller.is_far(reading.mean)):
            verdict, memory = Verdict.EARLY, sentry.present
    suspicion = math.nan
    if controller.lineage.updates & LOOK_MASK == LOOK_MASK or run.announcer.is_heard:
        suspicion = sentry.suspicion_of(memory)
    # Else it is the first of its kind, it comes late, or it may clear samples.
    is_plain = (
        is_quiet
        and verdict is GOOD
        and (reading.lowest >= 0 or storage.are_offsets)
        and reading.part_size == storage.part_size
        and not run.source.is_late(chunk)
        and not controller.quarantine.is_watching
    )
    after = rates.scheduled_at(step + 1)
    return Judged(step, losses, state, reading, expected, verdict, memory, after, suspicion, is_plain)


def _check_out(run: Run, ticket: Ticket) -> None:
    """Raise RuntimeError for a ticket that is not out, or that the load callback reports."""
    if run.persistence.is_restoring and run.turns.is_mine:
        raise RuntimeError(f"load_callback must not report losses, got one of step {ticket.step}.")
    if ticket.batch.is_out and ticket.chunk.table is run.source.table:
        return
    if run.turns.busy is not None:
        # What another call is doing with it, or has left half done, is the reason.
        run.turns.wait("report", run.pace.step)
    raise RuntimeError(
        f"ticket of step {ticket.step} was already reported or dropped, or is of another run; report each batch once."
    )


def _expect(
    storage: SampleStorage, chunk: Chunk | FollowedChunk, slot: int, kind: int
) -> tuple[float, float, float, bool]:
    """The loss that the table expects, what the guard is told of it, that of a typical batch; whether it is usual."""
    expected, typical = chunk.expected[slot], chunk.typical
    if kind == EXACT:
        return expected, expected, typical, True
    if storage.estimator == "relative":
        # As `LossLearner.with_trend` says.
        trend = storage.batch_trend.value
        expected, typical = (each + trend if storage.are_offsets else each * trend for each in (expected, typical))
    if expected < typical:
        # Estimates from batch means are too rough to expect less of a batch that was chosen by them.
        return expected, typical, typical, chunk.sweep >= 0
    return expected, expected, typical, True
