"""A step: how a reported loss is judged, and what a good one changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ..guard.monitor import Memory
from ..guard.verdict import GOOD, Verdict
from ..recovery.lineage import LOOK_MASK
from ..sampling.chunk import OPEN, OUT_AGAIN, REPORTED, Chunk
from ..sampling.tally import Tally
from ..sampling.ticket import Ticket
from ..schedules.schedule import Kept
from ..table.labels.predictions import PredictionRows
from ..table.losses import EXACT, WHOLE_BATCH, Reading, check_kind, check_signs, read_loss, read_number

if TYPE_CHECKING:
    from ..table.storage import SampleStorage
    from .engine import Engine


Place: TypeAlias = tuple[Chunk, int, int]
Numbers: TypeAlias = tuple[float, Any, float, PredictionRows | None]


class Judged(NamedTuple):
    """A reported loss, judged; nothing is changed yet.

    Attributes:
        step: Steps reported before it.
        losses: The guard's state before it.
        place: The chunk of its batch, the slot there, and the state of that.
        numbers: Mean, means, lowest and predictions of the `Reading`.
        kind: What it is the loss of: see `SampleTable.part_size`.
        expected: The loss that the table expected.
        verdict: The guard's verdict.
        memory: What the sentry remembers after it.
        lr: The scheduled learning rate after it.
        suspicion: How close the guard is to refusing after it; NaN unless somebody asks.
        is_plain: Whether it is good, and there is no trouble.
    """

    step: int
    losses: Any
    place: Place
    numbers: Numbers
    kind: int
    expected: float
    verdict: Verdict
    memory: Memory
    lr: float
    suspicion: float
    is_plain: bool

    @property
    def reading(self) -> Reading:
        """The loss."""
        mean, means, lowest, predictions = self.numbers
        return Reading(mean, means, self.kind, lowest, predictions)


Fields: TypeAlias = tuple[int, Any, Place, Numbers, int, float, Verdict, Memory, float, float, bool]
"""Those of `Judged`, as a plain tuple, which CPython 3.11 makes and unpacks several times faster."""


def judge(
    run: Engine, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool, predictions: Any
) -> Fields:
    """Read a loss and judge it; asks guard and schedule, and changes nothing. See `R8Scheduler.report`."""
    _, epoch, _, rate, _, _, chunk, slot = ticket
    # Four in one line would make a tuple.
    table, sentry, pace = run.table, run.sentry, run.pace
    controller, rates, storage = run.controller, run.rates, table.storage
    step, losses, state = pace.step, sentry._losses, chunk.states[slot]
    # As `Batch.is_out` says, without its call: this is asked at every step.
    is_out = slot < chunk.drawn if state == OPEN else state == OUT_AGAIN
    if not is_out or chunk.table is not table or run.turns.busy is not None:
        _check_out(run, ticket)
    numbers: Numbers
    is_of_batch = type(loss) is float and storage.part_size == WHOLE_BATCH
    if is_of_batch and part_size is None and predictions is None and run.feed is None:
        # What `_read` says of nearly all losses, without its call.
        numbers, kind = (loss, loss, loss, None), WHOLE_BATCH
    else:
        numbers, kind = _read(run, ticket, loss, part_size, predictions)
    place, grad_norm = (chunk, slot, state), None if grad_norm is None else read_number("grad_norm", grad_norm)
    if epoch < 0:
        # A loss of the search for a rate, which no other loss says anything about.
        _, verdict = sentry.guard.judge(sentry.guard.begin(), numbers[0])
        return step, losses, place, numbers, kind, math.nan, verdict, sentry.present, math.nan, math.nan, False
    expected, predicted, typical, is_usual = _expect(storage, chunk, slot, kind)
    is_quiet, rate = controller.is_quiet, rate if rates.own is None else rates.own
    if is_quiet and not controller.is_early:
        verdict, memory = sentry.judge(numbers[0], predicted, typical, rate, grad_norm, skipped, is_usual)
    else:
        report = predicted, typical, rate, grad_norm, skipped, is_usual
        numbers, verdict, memory = _judge_closely(run, ticket, numbers, report)
    suspicion = math.nan
    if controller.lineage.updates & LOOK_MASK == LOOK_MASK or run.announcer.is_heard:
        suspicion = sentry.suspicion_of(memory)
    is_plain, steps = is_quiet and verdict is GOOD and (numbers[2] >= 0 or storage.are_offsets), pace.budget.steps
    if kind != storage.part_size or chunk.sweep != run.plan._planner.num_sweeps or controller.quarantine.is_watching:
        # It is the first of its kind, it comes late, or it may clear samples.
        is_plain = False
    if type(rates.schedule) is Kept:
        # Whatever the progress, which need not be known.
        lr = 1.0
    else:
        after = step + 1 + pace.left_out
        lr = rates.scheduled(after / steps if steps is not None and after < steps else pace.progress_at(step + 1))
    return step, losses, place, numbers, kind, expected, verdict, memory, lr, suspicion, is_plain


def _check_out(run: Engine, ticket: Ticket) -> None:
    """Raise RuntimeError for a ticket that is not out, or that the load callback reports."""
    if run.persistence.is_restoring and run.turns.is_mine:
        raise RuntimeError(f"load_callback must not report losses, got one of step {ticket.step}.")
    if ticket.batch.is_out and ticket.chunk.table is run.table:
        return
    if run.turns.busy is not None:
        # What another call is doing with it, or has left half done, is the reason.
        run.turns.wait("report", run.pace.step)
    raise RuntimeError(
        f"ticket of step {ticket.step} was already reported or dropped, or is of another run; report each batch once."
    )


def _read(run: Engine, ticket: Ticket, loss: Any, part_size: int | None, predictions: Any) -> tuple[Numbers, int]:
    """Read a loss: `Judged.numbers` and `Judged.kind`."""
    storage, is_drawn, count = run.table.storage, run.feed is None, len(ticket.indices)
    chunk: Any = ticket.chunk
    mean, means, kind, lowest, rows = read_loss(loss, count, part_size) if is_drawn else chunk.read(loss)
    if storage.is_single or (is_drawn and storage.part_size == EXACT and count == 1):
        # The loss of a single sample, without its dimension.
        kind, means = EXACT, means if storage.is_single else np.atleast_1d(means)
    if is_drawn and kind != storage.part_size:
        check_kind(kind, storage.part_size)
        if kind == EXACT:
            check_signs(means)
    if predictions is not None and storage.num_samples:
        rows = storage.evidence.checked(predictions, np.size(means), kind)
    return (mean, means, lowest, rows), kind


def _expect(storage: SampleStorage, chunk: Chunk, slot: int, kind: int) -> tuple[float, float, float, bool]:
    """The loss that the table expects, what the guard is told of it, that of a typical batch; whether it is usual."""
    expected, typical = chunk.expected[slot], chunk.typical
    if kind == EXACT:
        return expected, expected, typical, True
    if storage.estimator == "relative":
        # As `LossLearner.with_trend` says, without two calls.
        trend = storage.batch_trend.value
        if storage.are_offsets:
            expected, typical = expected + trend, typical + trend
        else:
            expected, typical = expected * trend, typical * trend
    if expected < typical:
        # Estimates from batch means are too rough to expect less of a batch that was chosen by them.
        return expected, typical, typical, chunk.sweep >= 0
    return expected, expected, typical, True


def _judge_closely(
    run: Engine, ticket: Ticket, numbers: Numbers, report: tuple[float, float, float, float | None, bool, bool]
) -> tuple[Numbers, Verdict, Memory]:
    """Judge a loss at the start of the run or while recovery is at work; ``report``: what `Sentry.judge` takes."""
    controller, sentry = run.controller, run.sentry
    predicted, typical, lr, grad_norm, skipped, is_usual = report
    if not controller.is_quiet and controller.experiment.tests(ticket):
        if grad_norm is not None and not math.isfinite(grad_norm):
            # What counts is whether the weights are sound, and a norm shows that, too.
            numbers = (math.nan, *numbers[1:])
        return numbers, Verdict.PROBED, sentry.present
    if not controller.is_quiet and run.rates.own is None:
        # The guard hears the rate of the step that it judges, before recovery lowers it.
        lr = run.rates.scheduled(run.pace.progress_at(ticket.step))
    mean = numbers[0]
    verdict, memory = sentry.judge(mean, predicted, typical, lr, grad_norm, skipped, is_usual)
    is_early = controller.is_early and verdict is GOOD and controller.is_suspicious(mean)
    # A batch that comes again was looked into the first time.
    if is_early and (ticket.chunk.states[ticket.slot] == OPEN or controller.is_far(mean)):
        return numbers, Verdict.EARLY, sentry.present
    return numbers, verdict, memory


def learn(run: Engine, ticket: Ticket, judged: Fields) -> Tally | None:
    """Keep a good loss, from which the table learns when its chunk is used up or somebody reads it; advance the run.

    Returns:
        The tally of the epoch, if it has ended with this step.
    """
    _, _, (chunk, slot, _), numbers, kind, _, verdict, memory, lr, suspicion, is_plain = judged
    mean, means, lowest, predictions = numbers
    reported, table, pace = mean, run.table, run.pace
    storage, tally, ended = table.storage, run._tally, None
    trend = storage.batch_trend
    run.sentry.keep(verdict, memory)
    if trend.is_early or lowest < 0.0:
        storage.part_size = kind
        if trend.is_early:
            mean, means, lowest = trend.believed(mean, means, lowest)
        before = table.learner.observe(mean, lowest, reported)
    else:
        before = trend.value
        trend.value = before + trend.weight * (mean - before)
    if predictions is not None:
        storage.evidence.make_records(predictions)
    pace.num_out -= 1
    pace.step += 1
    tally.num_good += 1
    tally.total += reported
    tally.samples += len(ticket.indices)
    run.controller.accepted(reported, ticket, lr, suspicion, run.rates.own)
    if pace.budget.steps is None:
        pace.begin_break()
    if not (pace.step + pace.left_out) % run.plan.steps_per_pass:
        ended = end_epoch(run)
    # The chunk keeps it. The table learns the whole chunk at once, when that is used up or somebody reads the table.
    means = mean if storage.is_single else means
    if is_plain and predictions is None:
        chunk.reports[slot], chunk.trends[slot], chunk.states[slot] = means, before, REPORTED
    else:
        storage.part_size = kind
        run.plan.report(ticket.batch, means, before, predictions)
    return ended


def end_epoch(run: Engine) -> Tally | None:
    """Start another tally if an epoch has just ended; returns the one that is over."""
    if run.pace.place % run.plan.steps_per_pass:
        return None
    run.pace.begin_epoch()
    ended, run._tally, run._epoch_ended = run._tally, Tally(), True
    return ended


def tell(run: Engine, ticket: Ticket, judged: Judged, ended: Tally | None) -> None:
    """Tell listeners of a step that was learned from, and of the epoch that ended with it."""
    run.emitter.step_done(
        ticket,
        progress=run.pace.progress,
        loss=judged.numbers[0],
        expected_loss=judged.expected,
        lr=run.rates.shown(ticket.lr),
        suspicion=judged.suspicion,
    )
    tell_epoch(run, ticket, ended)


def tell_epoch(run: Engine, ticket: Ticket, ended: Tally | None) -> None:
    """Tell listeners of an epoch that has ended with the step of a batch; None for none."""
    if ended is not None:
        run.emitter.epoch_done(
            epoch=run.pace.epoch - 1,
            progress=run.pace.progress,
            lr=run.rates.shown(ticket.lr),
            tally=ended,
            seconds=run.pace.seconds,
        )
