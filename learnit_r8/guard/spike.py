"""The spike guard: refuses losses that are not finite, and those that show that the weights are damaged.

A single high loss is no reason to go back, unless it is absurd: it may be the batch's. The evidence of damage is a
CUSUM, the sum of what each loss says for it (beyond the threshold) or against it, never below 0. How much one says
depends on how usual such losses are in this run, so that single samples with wild losses and smooth large batches need
no settings of their own.
Rules and measurements: benchmarks/detectors.py and benchmarks/divergences.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .._validation import is_number, whole_number
from ..table.early import FirstLosses
from ..table.records import LARGEST_LOSS
from .level_shift import ALARM, ALARM_AFTER_RESTORE, BLOCK, WILD, WORTH_OF_A_SPIKE, raised_by
from .thresholds import (
    FALLEN_FAR,
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
from .verdict import Verdict

LEAST_KNOWN = 32
"""Losses that make a start, and a reference."""
RARE = 0.02
"""Share of usual losses beyond the threshold up to which ``alarm`` is enough; beyond, a third more is needed."""
HELD_FROM, HELD_FROM_RAISED, MOST_HELD = 0.5, 3.0, 8
"""Share of the alarm from which on the thresholds are held, likewise of a raised level, and for how many looks."""
ABSURD = 10.0
"""A single loss this many times ``far`` is no healthy batch: an update from it would spoil an optimizer's memory."""
TRIAL = 128
"""Losses that are to show that a restore has helped, with less evidence than usual."""
FAR_BACK = 1024
"""Losses after a restore whose learning rate may be far below that of the state that was put back."""
FALLEN = 0.8
"""Factor by which the scheduled learning rate must have fallen to explain higher losses."""


class LossHistory(NamedTuple):
    """What is looked at every 16 losses only.

    Attributes:
        losses: The last losses, corrected for the batch's composition, oldest first.
        lrs: Scheduled learning rate at the end of each 16 of them.
        is_positive: Whether all so far were.
        start: Median of the first 32; NaN before.
        share: Slow mean of the share of usual losses beyond the threshold.
        best: Lowest median of a window; infinite before.
        best_spread: Spread of the losses in that window.
        best_lr: Scheduled learning rate then.
        drifted: Losses since the median is up.
        held: Looks that changed no threshold, because of the evidence, since there was none.
        raised: Evidence of a raised level, >= 0.
        on_trial: Losses of the 1024 after a restore that are still to come; the first 128 are to show that it helped.
        figures: `figures_of` the last windows, as many as the lag has blocks and one more.
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
    on_trial: int = 0
    figures: tuple[Figures, ...] = ()


class SpikeState(NamedTuple):
    """What `SpikeGuard` remembers between losses.

    Attributes:
        evidence: Of damage, >= 0.
        recent: Losses since the last look, corrected.
        reference: The thresholds.
        past: What they are made of.
        first: What the losses are judged by while there are no thresholds.
    """

    evidence: float = 0.0
    recent: tuple[float, ...] = ()
    reference: Thresholds = UNARMED
    past: LossHistory = LossHistory()
    first: FirstLosses = FirstLosses()


@dataclass(frozen=True)
class SpikeGuard:
    """Refuses what is not finite at once, spikes when they add up, and says when the loss drifts up.

    Losses are first corrected for the composition of their batch, so that hard batches of the scheduler's own making
    are no spikes. From then on the unit of the loss does not matter: it may be negative, tiny or huge. All is measured
    against the losses before the last ``lag`` ones, which a divergence has not touched yet; there must be 32 of them.
    Before that the rule of `FirstLosses` judges, from the ninth loss on.

    Attributes:
        alarm: Evidence that refuses a loss, > 0: about -log of the chance of a false alarm at a step.
        spread: A loss that high above the median speaks for damage, in standard deviations, > 0 (or one that is up by
            all the progress made, where that is clear); and
        gate: by at least this share of the progress made, in [0, 1]: all of it while the schedule's own learning rate
            has risen.
        far: Two losses this many times as far from the median as any before, or as all progress, are enough; > 1. Ten
            times further, one is.
        window: Losses that thresholds are made of, >= 32.
        lag: Last losses that they are not made of, >= 0.
        drift_steps: A median of ``window`` losses that is up by ``gate`` for so long is a drift, unless the scheduled
            learning rate fell; >= 16.
        lasting_steps: And if it goes on for so long, the weights are given up; > ``drift_steps``.

    Raises:
        ValueError: an attribute outside its range.

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
    drift_steps: int = 64
    lasting_steps: int = 192

    def __post_init__(self) -> None:
        for name, least in (("alarm", 0.0), ("spread", 0.0), ("far", 1.0)):
            value = getattr(self, name)
            if not (is_number(value) and least < value < math.inf):
                raise ValueError(f"{name} must be > {least:g} and finite, got {value!r}.")
        if not (is_number(self.gate) and 0 <= self.gate <= 1):
            raise ValueError(f"gate must be in [0, 1], got {self.gate!r}.")
        whole_number("window", self.window, least=LEAST_KNOWN)
        whole_number("lag", self.lag, least=0)
        whole_number("drift_steps", self.drift_steps, least=BLOCK)
        whole_number("lasting_steps", self.lasting_steps, least=self.drift_steps + 1)

    def begin(self) -> SpikeState:
        """The state before the first loss."""
        return SpikeState()

    def suspicion(self, state: SpikeState) -> float:
        """Evidence so far, as a share of the alarm; at least a half while the losses are up: no time for backups."""
        evidence = max(state.evidence / state.reference.alarm, state.past.raised / ALARM)
        return max(0.5 * (state.past.drifted > 0), min(1.0, evidence))

    def returned(self, state: SpikeState) -> SpikeState:
        """The state to go on with when the model was put back: for a while less evidence says that it did not help."""
        return state._replace(past=state.past._replace(on_trial=FAR_BACK))

    def informed(self, state: SpikeState, before: SpikeState) -> SpikeState:
        """The state to go on with when the model was put back to one of the first steps: the first losses are known.

        Args:
            state: That of the time that the model was put back to.
            before: That before the last refusal.
        """
        return (
            state if state.first.known >= before.first.known else state._replace(first=before.first._replace(recent=()))
        )

    def judge(
        self,
        state: SpikeState,
        loss: float,
        expected: float = math.nan,
        typical: float = math.nan,
        lr: float = math.nan,
    ) -> tuple[SpikeState, Verdict]:
        """Judge one batch loss; see `Guard.judge`.

        After SPIKE, RAISED and LASTING_DRIFT the state is the one of a new run: if the model is not put back, the new
        level of the losses is usual from then on.
        """
        # A comparison with NaN is false.
        if not -LARGEST_LOSS <= loss <= LARGEST_LOSS:
            return state, Verdict.NOT_FINITE
        evidence, recent, reference, past, first = state
        threshold, risen_threshold, lr_limit, far, absurd, up, down, alarm, level, _ = reference
        reported = loss
        if expected == expected:
            loss = corrected(loss, expected, typical, level)
        if threshold == _INFINITE:
            # Whatever a correction is worth so early, neither it nor the lack of it must make an alarm.
            if first.refuses(min(reported, loss)):
                return SpikeState(), Verdict.SPIKE
            # What is not judged yet must not make the thresholds of later.
            first, loss = first.with_loss(max(reported, loss)), first.believed(loss)
        recent += (loss,)
        if loss > threshold and (loss > risen_threshold or not lr > lr_limit):
            evidence += up if loss <= far else max(up, 0.501 * alarm)
            if evidence >= alarm or loss > absurd:
                return SpikeState(), Verdict.SPIKE
        elif evidence:
            evidence = max(0.0, evidence + down)
        if len(recent) == BLOCK:
            return self._look(_new_tuple(SpikeState, (evidence, recent, reference, past, first)), lr)
        return _new_tuple(SpikeState, (evidence, recent, reference, past, first)), Verdict.GOOD

    def _look(self, state: SpikeState, lr: float) -> tuple[SpikeState, Verdict]:
        """Renew the thresholds."""
        evidence, recent, reference, past, first = state
        raised = self._raised(evidence, recent, reference, past, lr)
        if raised == math.inf:
            return SpikeState(), Verdict.RAISED
        past, ordered = self._remember(past, recent, raised, lr)
        verdict = Verdict.GOOD
        if ordered:
            past, verdict = self._watch_drift(past, lr)
        if verdict is Verdict.LASTING_DRIFT:
            return SpikeState(), verdict
        known = len(past.losses) - self.lag
        if known < LEAST_KNOWN:
            return SpikeState(0.0, (), UNARMED, past, first), verdict
        suspects = evidence > HELD_FROM * reference.alarm or raised > HELD_FROM_RAISED
        if suspects and past.held < MOST_HELD:
            # What is under suspicion must not become usual before it is judged.
            return SpikeState(evidence, (), reference, past._replace(held=past.held + 1), first), verdict
        if past.held and not (evidence or raised):
            past = past._replace(held=0)
        reference, past = self._refer(self._figures_before(past, known), past)
        return _new_tuple(SpikeState, (evidence, (), reference, past, first)), verdict

    def _raised(
        self, evidence: float, recent: tuple[float, ...], reference: Thresholds, past: LossHistory, lr: float
    ) -> float:
        """Evidence of a raised level, infinite if it is enough."""
        limit = reference.lr_limit
        # Losses that are up because the schedule's rate has risen, or because it has fallen, tell nothing; after a
        # restore it has fallen in any case, as the thresholds are those of an earlier step.
        if past.share > WILD or lr > limit or (lr < FALLEN_FAR / RISEN * limit and not past.on_trial):
            return 0.0
        raised = raised_by(recent, past.losses[-self.lag :] if self.lag else (), reference.blocks, past.raised)
        alarm = ALARM_AFTER_RESTORE if past.on_trial > FAR_BACK - TRIAL else ALARM
        return math.inf if raised and raised + WORTH_OF_A_SPIKE * evidence >= alarm else raised

    def _remember(
        self, past: LossHistory, recent: tuple[float, ...], raised: float, lr: float
    ) -> tuple[LossHistory, bool]:
        """The past with 16 more losses, and whether there are enough for the figures of a window."""
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
        on_trial = max(0, past.on_trial - BLOCK)
        # In the order of the fields: one tuple made by hand costs a quarter of a call of _replace().
        rest = (past.share, past.best, past.best_spread, past.best_lr, past.drifted, past.held, raised, on_trial)
        return _new_tuple(LossHistory, (losses, lrs, is_positive, start, *rest, figures)), is_full

    def _figures_before(self, past: LossHistory, known: int) -> Figures:
        """The figures of the losses before the last ``lag``."""
        if known == self.window and not self.lag % BLOCK and len(past.figures) > self.lag // BLOCK:
            # They were the last ones then, and have been looked at already.
            return past.figures[0]
        return figures_of(in_order(past.losses[:known]), past.start, wide=self.spread, gate=self.gate)

    def _refer(self, figures: Figures, past: LossHistory) -> tuple[Thresholds, LossHistory]:
        """The thresholds that figures of usual losses make."""
        middle, _, deviation, highest, above, count = figures[:6]
        if not deviation:
            # Losses that have never changed tell nothing of what a change means.
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
        """Hold the median of the last losses against the best there was."""
        middle, best_spread = past.figures[-1][:2]
        if middle < past.best:
            return past._replace(best=middle, best_spread=best_spread, best_lr=lr, drifted=0), Verdict.GOOD
        progress = past.start - past.best
        # The best of many medians is partly luck: 1.5 deviations of a loss are about ten of a median.
        is_up = progress > 0 and middle > past.best + max(self.gate * progress, 1.5 * past.best_spread)
        if not is_up or lr < FALLEN * past.best_lr:
            return (past._replace(drifted=0) if past.drifted else past), Verdict.GOOD
        before, drifted = past.drifted, past.drifted + BLOCK
        verdict = Verdict.DRIFT if before < self.drift_steps <= drifted else Verdict.GOOD
        if drifted >= self.lasting_steps:
            verdict = Verdict.LASTING_DRIFT
        return past._replace(drifted=drifted), verdict


_new_tuple = tuple.__new__
_INFINITE = math.inf
