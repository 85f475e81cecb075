"""Thresholds for the next losses, computed from usual ones."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .level_shift import LEAST_SHARE, UNKNOWN, BlockStatistics, cut_figures

LEAST_SPREAD = 0.05
"""Least spread, as a share of the progress: rounding noise in a converged loss must raise no alarm."""
CLEAR_PROGRESS = 2.5
"""Standard deviations of a loss that make progress clear. A loss that has lost all of clear progress is evidence of
damage, even if some healthy ones are as high; a level shift is one that loses a part of it."""
LEAST_RELATIVE_SPREAD = 2e-3
"""Least spread, relative to the median. Corrected losses vary even if losses do not: the table's prediction for a
typical batch is a mean over 25,000 samples, and varies by this much between chunks."""
USUAL_SHARE_WHEN_DAMAGED = 0.5
"""Least share of losses beyond the threshold that is assumed for damaged weights."""
RISEN = 1.25
"""Factor by which the scheduled learning rate must have risen to explain higher losses."""
MEMORY_OF_SHARE = 32
"""Renewals of the thresholds over which the share of usual losses beyond the threshold is averaged."""


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


def in_order(losses: Sequence[float]) -> list[float]:
    """Sort losses, lowest first."""
    # numpy's sort of a hundred floats takes 1 to 3 us on most processors, and 9 on Zen 4.
    return sorted(losses)


def median(ordered: Sequence[float]) -> float:
    """Median of sorted values, of which there is at least one."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def spread(ordered: Sequence[float], middle: float) -> float:
    """Robust standard deviation: 1.4826 times the median distance of sorted losses from ``middle``.

    The half that is nearest to the middle is contiguous, so bisection finds it.

    >>> spread([0.0, 1.0, 2.0, 3.0, 100.0], middle=2.0)
    1.4826
    """
    half = (len(ordered) + 1) // 2
    low, high = 0, len(ordered) - half
    while low < high:
        start = (low + high) // 2
        if middle - ordered[start] > ordered[start + half] - middle:
            low = start + 1
        else:
            high = start
    return 1.4826 * max(middle - ordered[low], ordered[low + half - 1] - middle)


def count_above(ordered: Sequence[float], threshold: float) -> int:
    """Number of sorted losses beyond a threshold."""
    return len(ordered) - bisect_right(ordered, threshold)


Figures = tuple[float, float, float, float, int, int, float, float, float]
"""What `figures_of` returns, in a form that can be saved."""


def figures_of(ordered: Sequence[float], start: float, *, wide: float, gate: float) -> Figures:
    """The figures of usual losses from which thresholds are made.

    Args:
        ordered: The losses, lowest first.
        start: The loss that the run began with.
        wide: Standard deviations above the median beyond which a loss is evidence of damage.
        gate: Least share of the progress by which it must also be higher.

    Returns:
        Median; spread about it; the same with a lower bound that excludes rounding noise (0 if all losses are equal);
        maximum; number beyond the threshold; number of losses; and their `cut_figures`.
    """
    middle, highest, count = median(ordered), ordered[-1], len(ordered)
    if ordered[0] == highest:
        return middle, 0.0, 0.0, highest, 0, count, highest, middle, 0.0
    near = spread(ordered, middle)
    progress = max(0.0, start - middle)
    deviation = max(near, LEAST_SPREAD * progress) or float(np.std(ordered))
    deviation = max(deviation, LEAST_RELATIVE_SPREAD * abs(middle))
    threshold = threshold_of(middle, deviation, progress, wide=wide, gate=gate)
    return middle, near, deviation, highest, count_above(ordered, threshold), count, *cut_figures(ordered)


def threshold_of(middle: float, deviation: float, progress: float, *, wide: float, gate: float) -> float:
    """The threshold beyond which a loss is evidence of damage."""
    distance = wide * deviation
    if progress >= CLEAR_PROGRESS * deviation and progress < distance:
        distance = progress
    return middle + max(distance, gate * progress)


def level_of(figures: Figures, progress: float) -> BlockStatistics:
    """Statistics of blocks of usual losses; `UNKNOWN` while the progress is not clear."""
    if progress < CLEAR_PROGRESS * figures[2]:
        return UNKNOWN
    cut, mean, deviation = figures[6:]
    least = LEAST_SHARE * progress
    # With a lower limit, no clipped block could ever exceed `least`.
    return _new_tuple(BlockStatistics, (max(cut, mean + 2 * least), mean, deviation, mean + least))


def share_at_most(above: int, count: int) -> float:
    """Share of losses beyond a threshold plus one standard error, as few losses cannot show that it is zero."""
    return (above + 1 + math.sqrt(above)) / (count + 2)


def weights_of_evidence(share: float) -> tuple[float, float]:
    """Log likelihood ratio, damaged to healthy weights, of a loss beyond the threshold and of any other loss.

    Args:
        share: Share of usual losses beyond the threshold, in (0, 1).
    """
    share = min(share, 0.55)
    damaged = max(USUAL_SHARE_WHEN_DAMAGED, share + 0.05)
    return math.log(damaged / share), math.log((1 - damaged) / (1 - share))


# Much faster than the constructor of a named tuple, which is a Python function.
_new_tuple = tuple.__new__
