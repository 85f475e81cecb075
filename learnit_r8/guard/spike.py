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

import numpy as np

from ..checks import is_number, whole_number
from .reference import (
    CLEAR_PROGRESS,
    LEAST_SPREAD,
    MEMORY_OF_SHARE,
    RISEN,
    ROUNDING,
    UNARMED,
    Reference,
    corrected,
    count_above,
    in_order,
    median,
    share_at_most,
    spread,
    weights_of_evidence,
)
from .verdict import LARGEST_LOSS, Verdict

BLOCK = 16
"""Losses between two looks at the thresholds."""
LEAST_KNOWN = 32
"""Losses that make a start, and a reference."""
RARE = 0.02
"""Share of usual losses beyond the threshold up to which ``alarm`` is enough; beyond, a third more is needed."""
HELD_FROM = 0.5
"""Share of the alarm from which on the thresholds are held, """
MOST_HELD = 8
"""for so many looks."""
ABSURD = 10.0
"""A single loss this many times ``far`` is no healthy batch: an update from it would spoil an optimizer's memory."""
FALLEN = 0.8
"""Factor by which the scheduled learning rate must have fallen to explain higher losses."""


class Past(NamedTuple):
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


class SpikeState(NamedTuple):
    """What `SpikeGuard` remembers between losses.

    Attributes:
        evidence: Of damage, >= 0.
        recent: Losses since the last look, corrected.
        reference: The thresholds.
        past: What they are made of.
    """

    evidence: float = 0.0
    recent: tuple[float, ...] = ()
    reference: Reference = UNARMED
    past: Past = Past()


@dataclass(frozen=True)
class SpikeGuard:
    """Refuses what is not finite at once, spikes when they add up, and says when the loss drifts up.

    Losses are first corrected for the composition of their batch, so that hard batches of the scheduler's own making
    are no spikes. From then on the unit of the loss does not matter: it may be negative, tiny or huge. All is measured
    against the losses before the last ``lag`` ones, which a divergence has not touched yet; there must be 32 of them.

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
        return max(0.5 * (state.past.drifted > 0), min(1.0, state.evidence / state.reference.alarm))

    def judge(
        self,
        state: SpikeState,
        loss: float,
        expected: float = math.nan,
        typical: float = math.nan,
        lr: float = math.nan,
    ) -> tuple[SpikeState, Verdict]:
        """Judge one batch loss; see `Guard.judge`.

        After SPIKE and LASTING_DRIFT the state is the one of a new run: if the model is not put back, the new level
        of the losses is usual from then on.
        """
        # A comparison with NaN is false.
        if not -LARGEST_LOSS <= loss <= LARGEST_LOSS:
            return state, Verdict.NOT_FINITE
        evidence, recent, reference, past = state
        threshold, risen_threshold, lr_limit, far, absurd, up, down, alarm, level = reference
        if expected == expected:
            loss = corrected(loss, expected, typical, level)
        recent += (loss,)
        if loss > threshold and (loss > risen_threshold or not lr > lr_limit):
            evidence += up if loss <= far else max(up, 0.501 * alarm)
            if evidence >= alarm or loss > absurd:
                return SpikeState(), Verdict.SPIKE
        elif evidence:
            evidence = max(0.0, evidence + down)
        if len(recent) == BLOCK:
            return self._look(evidence, recent, reference, past, lr)
        return _new_tuple(SpikeState, (evidence, recent, reference, past)), Verdict.GOOD

    def _look(
        self, evidence: float, recent: tuple[float, ...], reference: Reference, past: Past, lr: float
    ) -> tuple[SpikeState, Verdict]:
        """Renew the thresholds."""
        losses = (past.losses + recent)[-(self.window + self.lag) :]
        lrs = (*past.lrs, lr)[-(len(losses) // BLOCK) :]
        is_positive = past.is_positive and min(recent) > 0
        start = past.start
        if start != start and len(losses) >= LEAST_KNOWN:
            start = median(in_order(losses[:LEAST_KNOWN]))
        past = past._replace(losses=losses, lrs=lrs, is_positive=is_positive, start=start)
        past, verdict = self._watch_drift(past, lr)
        if verdict is Verdict.LASTING_DRIFT:
            return SpikeState(), verdict
        known = losses[: len(losses) - self.lag]
        if len(known) < LEAST_KNOWN:
            return SpikeState(0.0, (), UNARMED, past), verdict
        if evidence > HELD_FROM * reference.alarm and past.held < MOST_HELD:
            # What is under suspicion must not become usual before it is judged.
            return SpikeState(evidence, (), reference, past._replace(held=past.held + 1)), verdict
        reference, past = self._refer(in_order(known), past._replace(held=past.held if evidence else 0))
        return SpikeState(evidence, (), reference, past), verdict

    def _refer(self, ordered: list[float], past: Past) -> tuple[Reference, Past]:
        """The thresholds that usual losses, in order, make."""
        middle = median(ordered)
        progress = max(0.0, past.start - middle)
        deviation = max(spread(ordered, middle), LEAST_SPREAD * progress) or float(np.std(ordered))
        if not deviation:
            # Losses that have never changed tell nothing of what a change means.
            return UNARMED, past
        deviation = max(deviation, ROUNDING * abs(middle))
        wide = self.spread * deviation
        if progress >= CLEAR_PROGRESS * deviation:
            wide = min(wide, progress)
        threshold = middle + max(wide, self.gate * progress)
        above = count_above(ordered, threshold)
        usual = past.share + (above / len(ordered) - past.share) / MEMORY_OF_SHARE
        share = max(share_at_most(above, len(ordered)), usual)
        up, down = weights_of_evidence(share)
        far = self.far * max(ordered[-1] - middle, progress)
        lrs = past.lrs[: max(1, len(past.lrs) - self.lag // BLOCK)]
        reference = Reference(
            threshold=threshold,
            risen_threshold=middle + max(self.spread * deviation, progress),
            lr_limit=RISEN * sum(lrs) / len(lrs),
            far=middle + far,
            absurd=middle + max(ABSURD * far, ABSURD * abs(middle)),
            up=up,
            down=down,
            alarm=self.alarm if share < RARE else self.alarm * 4 / 3,
            level=middle if past.is_positive else math.nan,
        )
        return reference, past._replace(share=usual)

    def _watch_drift(self, past: Past, lr: float) -> tuple[Past, Verdict]:
        """Hold the median of the last losses against the best there was."""
        if len(past.losses) < self.window:
            return past, Verdict.GOOD
        ordered = in_order(past.losses[-self.window :])
        middle = median(ordered)
        if middle < past.best:
            best_spread = spread(ordered, middle)
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
