"""A step: how a reported loss is judged, and what a good one changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from .._validation import shortened
from ..guard.monitor import MOST_SUSPICION, Memory
from ..guard.verdict import GOOD, Verdict
from ..recovery.lineage import LOOK_MASK
from ..sampling.chunk import OPEN, OUT_AGAIN, REPORTED, Chunk
from ..sampling.tally import Tally
from ..sampling.ticket import Ticket
from ..schedules.schedule import Kept
from ..table.labels.predictions import PredictionRows
from ..table.losses import EXACT, WHOLE_BATCH, Reading, check_kind, check_signs, read_loss, read_number

if TYPE_CHECKING:
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
        is_calm: Whether the guard suspects nothing, where recovery asks.
        suspicion: How close the guard is to refusing after it; NaN unless somebody listens.
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
    is_calm: bool
    suspicion: float
    is_plain: bool

    @property
    def reading(self) -> Reading:
        """The loss."""
        mean, means, lowest, predictions = self.numbers
        return Reading(mean, means, self.kind, lowest, predictions)


Fields: TypeAlias = tuple[int, Any, Place, Numbers, int, float, Verdict, Memory, float, bool, float, bool]
"""Those of `Judged`, as a plain tuple, which CPython 3.11 makes and unpacks several times faster."""


def judge(
    run: Engine, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool, predictions: Any
) -> Fields:
    """Read a loss and judge it; asks guard and schedule, and changes nothing. See `R8Scheduler.report`.

    In this order: whether the batch is out, the loss and its kind, what the table expects of it, the verdict, the next
    rate, and whether this is an ordinary step. What short calls would say stands here itself, as each costs 1 %.
    """
    if type(ticket) is not Ticket:
        raise TypeError(
            f"ticket must be what draw() returned, got {shortened(ticket)}. In a loop over batch_iterator() give the "
            "losses to update_with_loss()."
        )
    _, epoch, indices, rate, _, _, (chunk, slot, _) = ticket
    table, sentry, pace, controller = run.table, run.sentry, run.pace, run.controller
    step, losses, state = pace.step, sentry._losses, chunk.states[slot]
    # As `Batch.is_out` says, without its call: this is asked at every step.
    if not (slot < chunk.drawn if state == OPEN else state == OUT_AGAIN) or chunk.table is not table:
        _refuse_ticket(run, ticket)
    if run.turns.busy is not None:
        _refuse_restoring(run, ticket)
    storage, is_drawn = table.storage, run.feed is None
    means: Any
    if type(loss) is float and part_size is None and is_drawn:
        # As `read_loss` does, without its call.
        mean, means, kind, lowest, rows = loss, loss, WHOLE_BATCH, loss, None
    else:
        reading = read_loss(loss, len(indices), part_size) if is_drawn else chunk.read(loss)  # type: ignore[attr-defined]
        mean, means, kind, lowest, rows = reading
    if is_drawn and storage.part_size == EXACT and len(indices) == 1:
        # The loss of a single sample, without its dimension.
        means, kind = np.atleast_1d(means), EXACT
    if grad_norm is not None:
        grad_norm = read_number("grad_norm", grad_norm)
    if storage.is_single:
        kind = EXACT
    is_plain = kind == storage.part_size
    if not is_plain and is_drawn:
        check_kind(kind, storage.part_size)
        if kind == EXACT:
            check_signs(means)
    if predictions is not None and storage.num_samples:
        rows = storage.evidence.checked(predictions, np.size(means), kind)
    if epoch < 0:
        return _judge_alone(run, (chunk, slot, state), (mean, means, lowest, rows), kind)
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
    judged_rate = run.rates.own
    if judged_rate is None:
        judged_rate = rate if is_quiet else run.rates.scheduled(pace.progress_at(ticket.step))
    if not is_quiet and controller.experiment.tests(ticket):
        # What counts is whether the weights are sound, and a norm shows that, too.
        mean = mean if grad_norm is None or math.isfinite(grad_norm) else math.nan
        verdict, memory = Verdict.PROBED, sentry.present
    else:
        verdict, memory = sentry.judge(mean, predicted, typical, judged_rate, grad_norm, skipped, is_usual)
        if controller.is_early and verdict is GOOD and _is_early_trouble(run, mean, state):
            verdict, memory = Verdict.EARLY, sentry.present
    steps, rates = pace.budget.steps, run.rates
    if type(rates.schedule) is Kept:
        # Whatever the progress, which need not be known.
        lr = 1.0
    else:
        progress = (step + 1) / steps if steps is not None and step + 1 < steps else pace.progress_at(step + 1)
        last, lr = rates.last
        if progress != last:
            lr = rates.scheduled(progress)
    is_plain = (
        is_plain
        and is_quiet
        and verdict is GOOD
        and (lowest >= 0 or storage.are_offsets)
        and chunk.sweep == run.plan._planner.num_sweeps
        and not controller.quarantine.is_watching
    )
    is_calm, suspicion = True, math.nan
    if controller.lineage.updates & LOOK_MASK == LOOK_MASK:
        is_calm = sentry.suspicion_of(memory) < 2 * MOST_SUSPICION
    if run.announcer.is_heard:
        suspicion = sentry.suspicion_of(memory)
    return (
        step, losses, (chunk, slot, state), (mean, means, lowest, rows), kind, expected, verdict, memory, lr, is_calm,
        suspicion, is_plain,
    )  # fmt: skip


def _judge_alone(run: Engine, place: Place, numbers: Numbers, kind: int) -> Fields:
    """Judge a loss of the search for a rate, which no other loss says anything about."""
    sentry, nan = run.sentry, math.nan
    _, verdict = sentry.guard.judge(sentry.guard.begin(), numbers[0])
    return run.pace.step, sentry._losses, place, numbers, kind, nan, verdict, sentry.present, nan, True, nan, False


def _is_early_trouble(run: Engine, mean: float, state: int) -> bool:
    """Whether a loss at the start of a run, which the guard lets pass, is to be looked into."""
    # A batch that comes again was looked into the first time.
    return run.controller.is_suspicious(mean) and (state == OPEN or run.controller.is_far(mean))


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


def learn(run: Engine, ticket: Ticket, judged: Fields) -> Tally | None:
    """Keep a good loss, from which the table learns when its chunk is used up or somebody reads it; advance the run.

    Returns:
        The tally of the epoch, if it has ended with this step.
    """
    _, _, (chunk, slot, _), numbers, kind, _, verdict, memory, lr, is_calm, _, is_plain = judged
    mean, means, lowest, predictions = numbers
    reported, table, pace, storage = mean, run.table, run.pace, run.table.storage
    trend, tally, ended = storage.batch_trend, run._tally, None
    run.sentry.keep(verdict, memory)
    if trend.is_early or lowest < 0:
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
    run.controller.accepted(reported, ticket, lr, is_calm)
    if pace.budget.steps is None:
        pace.begin_break()
    if not pace.step % run.plan.steps_per_pass:
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
    if run.pace.step % run.plan.steps_per_pass:
        return None
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
