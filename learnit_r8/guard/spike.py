"""The spike guard: refuses losses that are not finite, and those that show that the weights are damaged.

A single high loss, unless it is absurd, is no reason to restore: its batch may explain it. Evidence of damage is a
CUSUM: each loss adds to it if it is beyond the threshold and subtracts otherwise, never below 0. The amounts depend on
how common such losses are in this run, so noisy losses of single samples and smooth large batches need no settings of
their own. Measurements: benchmarks/detectors.py and benchmarks/divergences.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .._validation import is_number, whole_number
from ..table.records import LARGEST_LOSS
from ..table.trend import FirstLosses
from .level_shift import ALARM, BLOCK, WILD, WORTH_OF_A_SPIKE, raised_by
from .thresholds import (
    MEMORY_OF_SHARE,
    RISEN,
    UNARMED,
    Figures,
    Thresholds,
    corrected,
    figures_of,
    in_order,
    level_of,
    median,
    share_at_most,
    threshold_of,
    weights_of_evidence,
)
from .verdict import GOOD, Verdict

LEAST_KNOWN = 32
"""Least number of losses from which the starting loss and the thresholds are computed."""
RARE = 0.02
"""If a larger share of usual losses is beyond the threshold, an alarm needs a third more evidence than ``alarm``."""
HELD_FROM, HELD_FROM_RAISED, MOST_HELD = 0.5, 3.0, 8
"""The thresholds are not renewed above this share of the alarm's evidence, or above this evidence of a raised level,
for at most this many renewals."""
ABSURD = 10.0
"""A single loss this many times ``far`` is refused: an update from it would spoil the optimizer's moments."""
MOST_SPREAD = 2 / 3
"""Largest share of losses beyond the threshold, since the first of them, that may be a spread of losses."""
ALMOST = 0.99
"""Share of the alarm's evidence that is left when it is not believed."""
FALLEN = 0.8
"""Factor by which the scheduled learning rate must have fallen to explain higher losses."""


class LossHistory(NamedTuple):
    """The part of the state that changes only after every block of 16 losses.

    Attributes:
        losses: The last losses, corrected for their batch's composition, oldest first.
        lrs: Scheduled learning rate at the end of each block of them.
        is_positive: Whether all losses so far were positive.
        start: Median of the first 32; NaN before.
        share: Slow mean of the share of usual losses beyond the threshold.
        best: Lowest median of a window; infinite before the first.
        best_spread: Spread of the losses in that window.
        best_lr: Scheduled learning rate at its end.
        drifted: Losses since the median rose above the best.
        held: Number of renewals of the thresholds skipped because of evidence, since there last was none.
        raised: Evidence of a raised level, >= 0.
        figures: `figures_of` the last windows, one more than the blocks in ``lag``.
    """

    losses: tuple[float, ...] = ()
    lrs: tuple[float, ...] = ()
    is_positive: bool = True
    start: float = math.nan
    share: float = 0.0
    best: float = math.inf
    best_spread: float = 0.0
    best_lr: float = math.nan
    drifted: int = 0
    held: int = 0
    raised: float = 0.0
    figures: tuple[Figures, ...] = ()


class SpikeState(NamedTuple):
    """The state of `SpikeGuard` between losses.

    Attributes:
        evidence: Evidence of damage, >= 0.
        recent: Corrected losses of the current block.
        reference: The thresholds.
        past: Earlier losses, from which they are made.
        first: Judges losses while there are no thresholds.
    """

    evidence: float = 0.0
    recent: tuple[float, ...] = ()
    reference: Thresholds = UNARMED
    past: LossHistory = LossHistory()
    first: FirstLosses = FirstLosses()


@dataclass(frozen=True)
class SpikeGuard:
    """Refuses non-finite losses at once and spikes when their evidence adds up, and reports slow drifts.

    Losses are first corrected for the composition of their batch, so hard batches drawn by the scheduler are not taken
    for spikes. The unit of the loss does not matter: it may be negative, tiny or huge. Each loss is compared with those
    before the last ``lag`` ones, which a divergence has not touched yet. While there are fewer than 32 of them, the
    rule of `FirstLosses` judges, from the ninth loss on.

    Attributes:
        alarm: Evidence that refuses a loss, > 0: about -log of the chance of a false alarm at a step.
        spread: Standard deviations above the median from which a loss is evidence of damage, > 0. A loss that has lost
            all the progress made is too, if the progress is clear.
        gate: Least share of the progress made that it must also have lost, in [0, 1]; all of it while the scheduled
            learning rate has risen.
        far: Two losses this many times as far from the median as any before, or as all progress, are refused, and one
            loss ten times as far as that; > 1.
        window: Losses from which thresholds are computed, >= 32.
        lag: Most recent losses that are left out of them, >= 0.
        lasting_steps: Losses after which a median of ``window`` losses that is higher by ``gate`` counts as a lasting
            drift, unless the scheduled learning rate fell, and is refused; >= 16.
        tests_progress: Whether losses of the first steps that rise, or make no progress, are worth a probe.

    Raises:
        ValueError: an attribute is outside its range.

    Source: CUSUM of E. S. Page, Biometrika 41 (1954), on exceedances; thresholds measured in benchmarks/detectors.py.

    >>> guard = SpikeGuard()
    >>> state = guard.begin()
    >>> for loss in [2.0, 1.9, 2.1] * 40 + [9.0] * 2:
    ...     state, verdict = guard.judge(state, loss)
    >>> verdict
    <Verdict.SPIKE: 'spike'>
    """

    alarm: float = 12.0
    spread: float = 6.0
    gate: float = 0.5
    far: float = 10.0
    window: int = 128
    lag: int = 48
    lasting_steps: int = 192
    tests_progress: bool = True

    def __post_init__(self) -> None:
        for name, least in (("alarm", 0.0), ("spread", 0.0), ("far", 1.0)):
            value = getattr(self, name)
            if not (is_number(value) and least < value < math.inf):
                raise ValueError(f"{name} must be > {least:g} and finite, got {value!r}.")
        if not (is_number(self.gate) and 0 <= self.gate <= 1):
            raise ValueError(f"gate must be in [0, 1], got {self.gate!r}.")
        whole_number("window", self.window, least=LEAST_KNOWN)
        whole_number("lag", self.lag, least=0)
        whole_number("lasting_steps", self.lasting_steps, least=BLOCK)

    def begin(self) -> SpikeState:
        """The state before the first loss."""
        return SpikeState()

    def suspicion(self, state: SpikeState) -> float:
        """Evidence as a share of the alarm, at most 1; at least 0.5 during a drift, so that no backups are taken."""
        evidence, _, reference, past, _ = state
        return min(1.0, max(evidence / reference.alarm, past.raised / ALARM, 0.5 * (past.drifted > 0)))

    def calmed(self, state: SpikeState) -> SpikeState:
        """The state without its evidence, as the weights were found healthy."""
        return state._replace(evidence=0.0, past=state.past._replace(raised=0.0, drifted=0))

    def moved_to(self, state: SpikeState, lr: float) -> SpikeState:
        """The state of earlier losses as though they had come at the present scheduled rate, ``lr``.

        The schedule goes on while a model goes back; how far it fell in between explains no loss.
        """
        past, reference = state.past, state.reference
        if not (past.lrs and past.lrs[-1] > 0 and lr > 0):
            return state
        factor = lr / past.lrs[-1]
        past = past._replace(lrs=tuple(each * factor for each in past.lrs), best_lr=past.best_lr * factor)
        return state._replace(reference=reference._replace(lr_limit=reference.lr_limit * factor), past=past)

    def judge(
        self,
        state: SpikeState,
        loss: float,
        expected: float = math.nan,
        typical: float = math.nan,
        lr: float = math.nan,
    ) -> tuple[SpikeState, Verdict]:
        """Judge one batch loss; see `Guard.judge`.

        After SPIKE, RAISED and LASTING_DRIFT the state is that of a new run: unless the model is restored, the new
        level of the losses becomes the usual one.
        """
        # A comparison with NaN is false.
        if not -LARGEST_LOSS <= loss <= LARGEST_LOSS:
            return state, Verdict.NOT_FINITE
        evidence, recent, reference, past, first = state
        threshold, reported = reference.threshold, loss
        # A typical batch that would be refused is none: the table has learned losses of damaged weights, and must not
        # lift those of other batches.
        if expected == expected and not expected < typical > threshold:
            loss = corrected(loss, expected, typical, reference.level)
        if threshold == _INFINITE:
            # The correction is unreliable this early, so the loss is refused only if it is too high with and without.
            if first.refuses(min(reported, loss)):
                return SpikeState(), Verdict.SPIKE
            # A loss that is not fully judged yet must not distort later thresholds.
            first, loss = first.with_loss(max(reported, loss)), first.believed(loss)
        recent += (loss,)
        if loss > threshold and (loss > reference.risen_threshold or not lr > reference.lr_limit):
            _, _, _, far, absurd, up, _, alarm, _, _ = reference
            evidence += up if loss <= far else max(up, 0.501 * alarm)
            if evidence >= alarm or loss > absurd:
                if loss > far or not self._is_spreading(recent, past, threshold):
                    return SpikeState(), Verdict.SPIKE
                evidence = ALMOST * alarm
        elif evidence:
            evidence = max(0.0, evidence + reference.down)
        if len(recent) == BLOCK:
            return self._look(_new_tuple(SpikeState, (evidence, recent, reference, past, first)), lr)
        return _new_tuple(SpikeState, (evidence, recent, reference, past, first)), GOOD

    def _is_spreading(self, recent: tuple[float, ...], past: LossHistory, threshold: float) -> bool:
        """Whether losses only spread, as those of classes drift apart early in a run, and are no higher on average."""
        if threshold < past.start or len(past.losses) >= self.window + self.lag:
            return False
        last = (past.losses + recent)[-BLOCK:]
        since = next(number for number, loss in enumerate(last) if loss > threshold)
        # Nearly all losses of damaged weights are high.
        if sum(loss > threshold for loss in last) > MOST_SPREAD * (BLOCK - since):
            return False
        mean = sum(last) / BLOCK
        # Two standard errors.
        return mean < past.start + 2 * math.dist(last, (mean,) * BLOCK) / BLOCK

    def _look(self, state: SpikeState, lr: float) -> tuple[SpikeState, Verdict]:
        """Renew the thresholds."""
        evidence, recent, reference, past, first = state
        raised = self._raised(evidence, recent, reference, past, lr)
        if raised == math.inf:
            return SpikeState(), Verdict.RAISED
        past, ordered = self._remember(past, recent, raised, lr)
        verdict = GOOD
        if ordered:
            past, verdict = self._watch_drift(past, lr)
        if verdict is Verdict.LASTING_DRIFT:
            return SpikeState(), verdict
        known = len(past.losses) - self.lag
        if known < LEAST_KNOWN:
            return SpikeState(0.0, (), UNARMED, past, first), verdict
        suspects = evidence > HELD_FROM * reference.alarm or raised > HELD_FROM_RAISED
        if suspects and past.held < MOST_HELD:
            # Suspicious losses must not become usual before they are judged.
            return SpikeState(evidence, (), reference, past._replace(held=past.held + 1), first), verdict
        if past.held and not (evidence or raised):
            past = past._replace(held=0)
        if known == self.window and not self.lag % BLOCK and len(past.figures) > self.lag // BLOCK:
            # They were computed when that window was the last one.
            figures = past.figures[0]
        else:
            figures = figures_of(in_order(past.losses[:known]), past.start, wide=self.spread, gate=self.gate)
        reference, past = self._thresholds(figures, past)
        return _new_tuple(SpikeState, (evidence, (), reference, past, first)), verdict

    def _raised(
        self, evidence: float, recent: tuple[float, ...], reference: Thresholds, past: LossHistory, lr: float
    ) -> float:
        """Evidence of a raised level; infinite if it is enough for a refusal."""
        # A higher scheduled rate may explain higher losses.
        if past.share > WILD or lr > reference.lr_limit:
            return 0.0
        raised = raised_by(recent, past.losses[-self.lag :] if self.lag else (), reference.blocks, past.raised)
        return math.inf if raised and raised + WORTH_OF_A_SPIKE * evidence >= ALARM else raised

    def _remember(
        self, past: LossHistory, recent: tuple[float, ...], raised: float, lr: float
    ) -> tuple[LossHistory, bool]:
        """The history with one more block of losses, and whether there are enough of them for a whole window."""
        losses = (past.losses + recent)[-(self.window + self.lag) :]
        lrs = (*past.lrs, lr)[-(len(losses) // BLOCK) :]
        is_positive = past.is_positive and min(recent) > 0
        start = past.start
        if start != start and len(losses) >= LEAST_KNOWN:
            start = median(in_order(losses[:LEAST_KNOWN]))
        figures, is_full = past.figures, len(losses) >= self.window
        if is_full:
            newest = figures_of(in_order(losses[-self.window :]), start, wide=self.spread, gate=self.gate)
            figures = (*figures, newest)[-(self.lag // BLOCK + 1) :]
        # In the order of the fields: this costs a quarter of _replace().
        rest = (past.share, past.best, past.best_spread, past.best_lr, past.drifted, past.held, raised)
        return _new_tuple(LossHistory, (losses, lrs, is_positive, start, *rest, figures)), is_full

    def _thresholds(self, figures: Figures, past: LossHistory) -> tuple[Thresholds, LossHistory]:
        """Compute the thresholds from the figures of usual losses."""
        middle, _, deviation, highest, above, count = figures[:6]
        if not deviation:
            # Losses that have never changed cannot show how large a harmful change is.
            return UNARMED, past
        progress = max(0.0, past.start - middle)
        usual = past.share + (above / count - past.share) / MEMORY_OF_SHARE
        share = max(share_at_most(above, count), usual)
        far = self.far * max(highest - middle, progress)
        lrs = past.lrs[: max(1, len(past.lrs) - self.lag // BLOCK)]
        thresholds = (
            threshold_of(middle, deviation, progress, wide=self.spread, gate=self.gate),
            middle + max(self.spread * deviation, progress),
            RISEN * sum(lrs) / len(lrs),
            middle + far,
            middle + max(ABSURD * far, ABSURD * abs(middle)),
        )
        alarm = self.alarm if share < RARE else self.alarm * 4 / 3
        level = middle if past.is_positive else math.nan
        rest = (*weights_of_evidence(share), alarm, level, level_of(figures, progress))
        return _new_tuple(Thresholds, (*thresholds, *rest)), past._replace(share=usual)

    def _watch_drift(self, past: LossHistory, lr: float) -> tuple[LossHistory, Verdict]:
        """Compare the median of the last losses with the lowest one so far."""
        middle, best_spread = past.figures[-1][:2]
        if middle < past.best:
            return past._replace(best=middle, best_spread=best_spread, best_lr=lr, drifted=0), GOOD
        progress = past.start - past.best
        # The lowest of many medians is partly luck: 1.5 deviations of a loss are about ten of a median.
        is_up = progress > 0 and middle > past.best + max(self.gate * progress, 1.5 * past.best_spread)
        if not is_up or lr < FALLEN * past.best_lr:
            return (past._replace(drifted=0) if past.drifted else past), GOOD
        drifted = past.drifted + BLOCK
        return past._replace(drifted=drifted), Verdict.LASTING_DRIFT if drifted >= self.lasting_steps else GOOD


_new_tuple = tuple.__new__
_INFINITE = math.inf
