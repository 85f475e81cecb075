"""What usual losses look like: the thresholds that the next ones are held against."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .level_shift import LEAST_SHARE, UNKNOWN, BlockStatistics, cut_figures

LEAST_SPREAD = 0.05
"""Of the progress made: a loss that has come to rest must not be alarmed by its own last digits."""
CLEAR_PROGRESS = 2.5
"""Standard deviations of a loss that make progress clear: a loss that is up by all of it speaks for damage, even where
some healthy ones are as high, and a raised level is one that loses a part of it."""
LEAST_RELATIVE_SPREAD = 2e-3
"""Losses that never change still seem to: what the table takes for a typical batch is a mean over 25 thousand samples,
and differs by this part from chunk to chunk."""
USUAL_SHARE_WHEN_DAMAGED = 0.5
"""Share of losses beyond the threshold that damaged weights are taken to have, at least."""
RISEN = 1.25
"""Factor by which the scheduled learning rate must have risen to explain higher losses."""
FALLEN_FAR = 0.5
"""Factor by which it must have fallen to explain them."""
MEMORY_OF_SHARE = 32
"""Looks over which the share of usual losses beyond the threshold is remembered."""


class Thresholds(NamedTuple):
    """Thresholds for corrected losses, and the weights of evidence.

    Attributes:
        threshold: Beyond it, a loss speaks for damage.
        risen_threshold: Likewise while the schedule's rate is higher than ``lr_limit``.
        lr_limit: See there. What it is relative to is 1 / 1.25 of it.
        far: Beyond it, two losses are enough for an alarm.
        absurd: Beyond it, one is.
        up: Evidence of a loss beyond the threshold, > 0.
        down: Evidence of any other, < 0.
        alarm: The evidence that is enough.
        level: The usual loss; NaN while it is not known, and once a loss was not positive.
        blocks: What blocks of usual losses are like.
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
"""While too few losses are known."""


def corrected(loss: float, expected: float, typical: float, level: float) -> float:
    """The loss as a typical batch would have had it; what is not due to the batch's composition stays.

    ``loss - (expected - typical)``, but relative where all losses are positive: of an easy batch the difference is
    scaled from the table's level, which may be an epoch old, to the present one; of a hard batch the noise shrinks
    with the loss, up to twice what was expected. What goes beyond counts in full: damage does not.

    Args:
        loss: Mean loss of the batch.
        expected: What the table predicted for it.
        typical: What it predicted at that time for a batch of all kinds of samples. NaN if it predicted nothing.
        level: The usual loss now; NaN while it is not known, and where losses may be negative.

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
    """The losses, lowest first."""
    # Twice as fast as sorted(), for a hundred of them in random order.
    values = np.fromiter(losses, np.float64, len(losses))
    values.sort()
    ordered: list[float] = values.tolist()
    return ordered


def median(ordered: Sequence[float]) -> float:
    """Median of ordered values, at least one."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def spread(ordered: Sequence[float], middle: float) -> float:
    """Standard deviation of normal losses half of which lie as near to the middle as half of these do.

    That is the median distance from the middle times 1.4826, found by bisection: the nearest half lies side by side.

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
    """How many of ordered losses are beyond a threshold."""
    return len(ordered) - bisect_right(ordered, threshold)


Figures = tuple[float, float, float, float, int, int, float, float, float]
"""What `figures_of` returns, in a form that can be saved."""


def figures_of(ordered: Sequence[float], start: float, *, wide: float, gate: float) -> Figures:
    """All that must be known of usual losses to hold later ones against them.

    Args:
        ordered: The losses, lowest first.
        start: The loss that the run began with.
        wide: Standard deviations above the median from which on a loss speaks for damage; and
        gate: by this share of the progress at least.

    Returns:
        Their median; the spread about it; the same, but no less than what tells a change (0: they are
        all equal); the highest; how many are beyond the threshold; how many they are; and their `cut_figures`.
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
    """The loss beyond which one speaks for damage."""
    distance = wide * deviation
    if progress >= CLEAR_PROGRESS * deviation and progress < distance:
        distance = progress
    return middle + max(distance, gate * progress)


def level_of(figures: Figures, progress: float) -> BlockStatistics:
    """What blocks of usual losses are like; nothing is said of them while the progress is not clear."""
    if progress < CLEAR_PROGRESS * figures[2]:
        return UNKNOWN
    cut, mean, deviation = figures[6:]
    least = LEAST_SHARE * progress
    # Cut lower than that, nothing could ever be up by as much.
    return _new_tuple(BlockStatistics, (max(cut, mean + 2 * least), mean, deviation, mean + least))


def share_at_most(above: int, count: int) -> float:
    """Share of losses beyond a threshold, one standard error up: few losses cannot prove that there are none."""
    return (above + 1 + math.sqrt(above)) / (count + 2)


def weights_of_evidence(share: float) -> tuple[float, float]:
    """Log of how much likelier a loss beyond the threshold, and any other, is with damaged weights than usually.

    Args:
        share: Share of the usual losses beyond it, in (0, 1).
    """
    share = min(share, 0.55)
    damaged = max(USUAL_SHARE_WHEN_DAMAGED, share + 0.05)
    return math.log(damaged / share), math.log((1 - damaged) / (1 - share))


# The constructor of a named tuple is a Python function; this is not.
_new_tuple = tuple.__new__
