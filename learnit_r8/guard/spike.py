"""The spike guard: refuses losses that are not finite, and those that show that the weights are damaged.

A single high loss, unless it is absurd, is no reason to restore: its batch may explain it. Evidence of damage is a
CUSUM: each loss adds to it if it is beyond the threshold and subtracts otherwise, never below 0. The amounts depend on
how common such losses are in this run, so noisy losses of single samples and smooth large batches need no settings of
their own. Measurements: benchmarks/detectors.py and benchmarks/divergences.py.

Level shifts are losses that are not high enough for a spike, but stay higher than they were. Weights may be damaged
without losing half of the progress, and seldom recover fully by themselves. Means of blocks of losses show this: with
the highest losses clipped, a healthy block's mean lies within a few standard deviations of the usual mean, whatever
single losses do. The evidence of damage is the CUSUM of those deviations.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .._validation import check_share, is_number, whole_number
from ..table.records import LARGEST_LOSS
from ..table.trend import NEAR, FirstLosses, is_far_below, lowest_median, median, rises_slowly
from .verdict import GOOD, Verdict

LEAST_SPREAD = 0.05
"""Least spread, as a share of the progress: rounding noise in a converged loss must raise no alarm."""
CLEAR_PROGRESS = 2.5
"""Standard deviations of a loss that make progress clear. A loss that has lost all of clear progress is evidence of
damage, even if some healthy ones are as high; a level shift is one that loses a part of it."""
CLEAR_TO_BLOCKS = 6.0
"""Standard deviations of a block's mean that make progress clear where it is not to single losses. A level shift is
then one that loses half of it."""
LEAST_RELATIVE_SPREAD = 2e-3
"""Least spread, relative to the median. Corrected losses vary even if losses do not: the table's prediction for a
typical batch is a mean over 25,000 samples, and varies by this much between chunks."""
USUAL_SHARE_WHEN_DAMAGED = 0.5
"""Least share of losses beyond the threshold that is assumed for damaged weights."""
RISEN = 1.25
"""Factor by which the scheduled learning rate must have risen to explain higher losses."""
MEMORY_OF_SHARE = 32
"""Renewals of the thresholds over which the share of usual losses beyond the threshold is averaged."""


BLOCK = 16
"""Losses in a block; the thresholds are also renewed after each block."""
ALARM = 10.0
"""Evidence that raises the alarm: two clearly higher blocks in a row, or several slightly higher ones."""
WILD = 0.05
"""If a larger share of usual losses looks like spikes, as with losses of single samples, blocks are not judged."""
USUAL = 1.25
"""Standard deviations by which a block may be higher without adding evidence."""
MOST = 6.25
"""Most standard deviations that a block counts for, so that a single block never raises the alarm."""
WORTH_OF_A_SPIKE = 0.4
"""Factor by which evidence of a spike is added: both at once are seldom chance."""
LEAST_SHARE, LEAST_OF_OWN = 0.05, 0.1
"""Share of the progress that the first block must have lost; the second for batches of the user's own, which no table
corrects: where they are learned by heart, samples are forgotten until they come again, so that losses rise in each
pass over the data, and fall as the next one begins."""
LEAST_LATER = 0.4
"""Part of that share that later blocks must have lost, if that is more than noise: damaged weights recover partly."""
CUT = 0.97
"""Quantile of usual losses at which losses are clipped."""


class BlockStatistics(NamedTuple):
    """Statistics of blocks of usual losses.

    Attributes:
        cut: Losses are clipped to this maximum.
        mean: Mean of the clipped losses.
        deviation: Standard deviation of a block's mean, >= 0.
        least: Mean that a block must exceed to be the first to add evidence.
    """

    cut: float = math.inf
    mean: float = 0.0
    deviation: float = 0.0
    least: float = math.inf


UNKNOWN = BlockStatistics()
"""Used while too few losses are known, or there is no progress that could be lost."""


def cut_figures(ordered: Sequence[float]) -> tuple[float, float, float]:
    """Clipping limit of sorted losses, and the mean and standard deviation of the mean of a block of them."""
    count = len(ordered)
    kept = int(CUT * count)
    cut = ordered[kept]
    mean = (sum(ordered[:kept]) + (count - kept) * cut) / count
    far = cut - mean
    # math.dist() sums the squares without a loop in Python.
    total = math.dist(ordered[:kept], (mean,) * kept) ** 2 + (count - kept) * far * far
    return cut, mean, math.sqrt(total / (count * BLOCK))


def raised_by(block: Sequence[float], before: Sequence[float], level: BlockStatistics, evidence: float) -> float:
    """Evidence after one more block.

    Args:
        block: The losses of the block.
        before: The losses just before it, which are not part of the usual ones yet. A slow rise shows in them too, and
            is not a level shift.
        level: Statistics of usual losses.
        evidence: Evidence before this block, >= 0.

    >>> level, usual = BlockStatistics(cut=9.0, mean=1.0, deviation=0.5, least=1.1), [1.0] * 48
    >>> [raised_by([loss] * 16, usual, level, evidence=0.0) for loss in (2.0, 1.05, 99.0)]
    [0.75, 0.0, 5.0]
    >>> raised_by([2.0] * 16, [1.95] * 48, level, evidence=0.0)
    0.0
    """
    cut, mean, deviation, least = level
    up, least = _mean(block, cut) - mean, least - mean
    if evidence:
        later = LEAST_LATER * least
        is_up = up > (later if deviation < later else least)
    else:
        is_up = up > least and (not before or up - (_mean(before, cut) - mean) > least)
    score = min(MOST, up / deviation) if is_up and deviation else 0.0
    return max(0.0, evidence + score - USUAL)


def _mean(losses: Sequence[float], cut: float) -> float:
    return sum([loss if loss < cut else cut for loss in losses]) / len(losses)


class Thresholds(NamedTuple):
    """Thresholds for corrected losses, and the weights of evidence.

    Attributes:
        threshold: A loss beyond it is evidence of damage.
        risen_threshold: Used instead while the scheduled learning rate is above ``lr_limit``.
        lr_limit: 1.25 times the mean scheduled learning rate of the usual losses.
        far: Two losses beyond it raise the alarm.
        absurd: One loss beyond it does.
        up: Evidence added by a loss beyond the threshold, > 0.
        down: Evidence added by any other loss, < 0.
        alarm: Evidence that raises the alarm.
        level: The usual loss; NaN while it is unknown, and after a loss that was not positive.
        blocks: Statistics of blocks of usual losses.
    """

    threshold: float
    risen_threshold: float
    lr_limit: float
    far: float
    absurd: float
    up: float
    down: float
    alarm: float
    level: float
    blocks: BlockStatistics


UNARMED = Thresholds(math.inf, math.inf, math.inf, math.inf, math.inf, 0.0, 0.0, math.inf, math.nan, UNKNOWN)
"""Used while too few losses are known."""


def corrected(loss: float, expected: float, typical: float, level: float) -> float:
    """Correct a batch's loss for its composition, to what a typical batch would have had.

    ``loss - (expected - typical)``, but relative if all losses are positive: for an easy batch the difference is
    scaled from the table's level, which may be an epoch old, to the current one; a hard batch's loss is multiplied by
    ``typical / expected``, but only up to twice the expected loss: what exceeds that may be damage and counts in full.

    Args:
        loss: Mean loss of the batch.
        expected: The table's prediction for it.
        typical: Its prediction, made at the same time, for an average batch; NaN if there was none.
        level: The usual loss now; NaN while it is unknown, and if losses may be negative.

    >>> corrected(4.4, expected=4.0, typical=2.0, level=1.0)
    2.2
    >>> corrected(0.6, expected=1.0, typical=2.0, level=1.0)
    1.1
    """
    if expected < typical:
        relative = level == level and expected > 0
        return loss + ((1 - expected / typical) * level if relative else typical - expected)
    if expected > typical:
        if level != level or typical <= 0:
            return loss + (typical - expected)
        return loss * typical / expected if loss < 2 * expected else 2 * typical + (loss - 2 * expected)
    return loss


def spread(ordered: Sequence[float], middle: float) -> float:
    """Robust standard deviation: 1.4826 times the median distance of sorted losses from ``middle``.

    >>> spread([0.0, 1.0, 2.0, 3.0, 100.0], middle=2.0)
    1.4826
    """
    return 1.4826 * sorted([abs(loss - middle) for loss in ordered])[(len(ordered) - 1) // 2]


def weights_of_evidence(share: float) -> tuple[float, float]:
    """Log likelihood ratio, damaged to healthy weights, of a loss beyond the threshold and of any other loss.

    Args:
        share: Share of usual losses beyond the threshold, in (0, 1).
    """
    share = min(share, 0.55)
    damaged = max(USUAL_SHARE_WHEN_DAMAGED, share + 0.05)
    return math.log(damaged / share), math.log((1 - damaged) / (1 - share))


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
        expects_progress: Whether losses should fall. Those of networks that train against each other need not: of them
            only one that is absurd, 10 ``far`` times as far as any before, is refused, and none is worth a probe.

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
    # A run that was saved before there was this has a guard of the same settings.
    expects_progress: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("alarm", 0.0), ("spread", 0.0), ("far", 1.0)):
            value = getattr(self, name)
            if not (is_number(value) and least < value < math.inf):
                raise ValueError(f"{name} must be > {least:g} and finite, got {value!r}.")
        check_share("gate", self.gate)
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

    def has_risen(self, state: SpikeState, lr: float) -> bool:
        """Whether a scheduled rate is so far above those of the usual losses that it explains higher ones."""
        return lr > state.reference.lr_limit

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
        self, state: SpikeState, loss: float, expected: float = math.nan, typical: float = math.nan,
        lr: float = math.nan,
    ) -> tuple[SpikeState, Verdict]:  # fmt: skip
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
        # The cheap comparison first: losses below zero are compared with all that are known.
        is_low = loss < 0 and loss < 2 * min(recent, default=0.0)
        if is_low and is_far_below(max(reported, loss), (*past.losses, *recent)):
            return SpikeState(), Verdict.SPIKE
        if threshold == math.inf:
            # The correction is unreliable this early, so the loss is refused only if it is absurd with and without.
            if first.refuses(min(reported, loss)):
                return SpikeState(), Verdict.SPIKE
            # A loss that is not fully judged yet must not distort later thresholds.
            first, loss = first.with_loss(max(reported, loss)), first.believed(loss)
        recent += (loss,)
        if loss > threshold and (loss > reference.risen_threshold or not lr > reference.lr_limit):
            far, up, alarm = reference.far, reference.up, reference.alarm
            if self.expects_progress:
                evidence += up if loss <= far else max(up, 0.501 * alarm)
            if evidence >= alarm or loss > reference.absurd:
                if self._is_slow(recent, past):
                    return SpikeState(), GOOD
                if loss > far or not self._is_spreading(recent, past, threshold):
                    return SpikeState(), Verdict.SPIKE
                evidence = ALMOST * alarm
        elif evidence:
            evidence = max(0.0, evidence + reference.down)
        state = SpikeState(evidence, recent, reference, past, first)
        return self._look(state, lr) if len(recent) == BLOCK else (state, GOOD)

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

    def _is_slow(self, recent: tuple[float, ...], past: LossHistory) -> bool:
        """Whether losses rise slowly before anything was learned, where no probe of a batch tells more.

        They do where a codebook or a target is learned too. What is usual is learned anew then; losses that stay far
        above the untrained model's are left to `Progress.is_above_untrained`.
        """
        if self.tests_progress or not (past.is_positive and past.start > 0):
            return False
        lowest = min(past.best, lowest_median(past.losses, BLOCK))
        return lowest > NEAR * past.start and rises_slowly(past.losses + recent)

    def _look(self, state: SpikeState, lr: float) -> tuple[SpikeState, Verdict]:
        """Renew the thresholds, after a block of losses."""
        evidence, recent, reference, past, first = state
        raised = 0.0
        # A higher scheduled rate may explain higher losses.
        if self.expects_progress and past.share <= WILD and not self.has_risen(state, lr):
            before = past.losses[-self.lag :] if self.lag else ()
            raised = raised_by(recent, before, reference.blocks, past.raised)
            if raised and raised + WORTH_OF_A_SPIKE * evidence >= ALARM:
                return SpikeState(), GOOD if self._is_slow(recent, past) else Verdict.RAISED
        losses, start = (past.losses + recent)[-(self.window + self.lag) :], past.start
        if start != start and len(losses) >= LEAST_KNOWN:
            start = median(sorted(losses[:LEAST_KNOWN]))
        past = past._replace(
            losses=losses, lrs=(*past.lrs, lr)[-(len(losses) // BLOCK) :], start=start, raised=raised,
            is_positive=past.is_positive and min(recent) > 0,
        )  # fmt: skip
        verdict = GOOD
        if self.expects_progress and len(losses) >= self.window:
            past, verdict = self._watch_drift(past, lr)
        if verdict is Verdict.LASTING_DRIFT:
            return SpikeState(), verdict
        known = len(losses) - self.lag
        if known < LEAST_KNOWN:
            return SpikeState(0.0, (), UNARMED, past, first), verdict
        suspects = evidence > HELD_FROM * reference.alarm or raised > HELD_FROM_RAISED
        if suspects and past.held < MOST_HELD:
            # Suspicious losses must not become usual before they are judged.
            return SpikeState(evidence, (), reference, past._replace(held=past.held + 1), first), verdict
        if past.held and not (evidence or raised):
            past = past._replace(held=0)
        reference, past = self._thresholds(sorted(losses[:known]), past)
        return SpikeState(evidence, (), reference, past, first), verdict

    def _thresholds(self, ordered: Sequence[float], past: LossHistory) -> tuple[Thresholds, LossHistory]:
        """Compute the thresholds from the usual losses, lowest first."""
        middle, highest, count = median(ordered), ordered[-1], len(ordered)
        if ordered[0] == highest:
            # Losses that have never changed cannot show how large a harmful change is.
            return UNARMED, past
        progress = max(0.0, past.start - middle)
        # With lower bounds that exclude rounding noise.
        deviation = max(spread(ordered, middle), LEAST_SPREAD * progress) or float(np.std(ordered))
        deviation = max(deviation, LEAST_RELATIVE_SPREAD * abs(middle))
        is_clear, distance = progress >= CLEAR_PROGRESS * deviation, self.spread * deviation
        threshold = middle + max(min(distance, progress) if is_clear else distance, self.gate * progress)
        above = count - bisect_right(ordered, threshold)
        usual = past.share + (above / count - past.share) / MEMORY_OF_SHARE
        # With one standard error, as few losses cannot show that it is zero.
        share = max((above + 1 + math.sqrt(above)) / (count + 2), usual)
        far = self.far * max(highest - middle, progress)
        lrs = past.lrs[: max(1, len(past.lrs) - self.lag // BLOCK)]
        up, down = weights_of_evidence(share)
        blocks = UNKNOWN
        cut, mean, block_deviation = cut_figures(ordered)
        if is_clear or progress >= CLEAR_TO_BLOCKS * block_deviation:
            least_share = LEAST_SHARE if self.tests_progress else LEAST_OF_OWN
            least = (least_share if is_clear else self.gate) * progress
            # With a lower limit, no clipped block could ever exceed `least`.
            blocks = BlockStatistics(max(cut, mean + 2 * least), mean, block_deviation, mean + least)
        thresholds = Thresholds(
            threshold, risen_threshold=middle + max(self.spread * deviation, progress),
            lr_limit=RISEN * sum(lrs) / len(lrs), far=middle + far,
            absurd=middle + max(ABSURD * far, ABSURD * abs(middle)), up=up, down=down,
            alarm=self.alarm if share < RARE else self.alarm * 4 / 3,
            level=middle if past.is_positive else math.nan, blocks=blocks,
        )  # fmt: skip
        return thresholds, past._replace(share=usual)

    def _watch_drift(self, past: LossHistory, lr: float) -> tuple[LossHistory, Verdict]:
        """Compare the median of the last losses with the lowest one so far."""
        ordered = sorted(past.losses[-self.window :])
        middle = median(ordered)
        if middle < past.best:
            best_spread = spread(ordered, middle)
            return past._replace(best=middle, best_spread=best_spread, best_lr=lr, drifted=0), GOOD
        progress = past.start - past.best
        # The lowest of many medians is partly luck: 1.5 deviations of a loss are about ten of a median.
        is_up = progress > 0 and middle > past.best + max(self.gate * progress, 1.5 * past.best_spread)
        if not is_up or lr < FALLEN * past.best_lr:
            return (past._replace(drifted=0) if past.drifted else past), GOOD
        drifted = past.drifted + BLOCK
        return past._replace(drifted=drifted), Verdict.LASTING_DRIFT if drifted >= self.lasting_steps else GOOD
