"""Level shifts: losses that are not high enough for a spike, but stay higher than they were.

Weights may be damaged without losing half of the progress, and seldom recover fully by themselves. Means of blocks of
losses show this: with the highest losses clipped, a healthy block's mean lies within a few standard deviations of the
usual mean, whatever single losses do. The evidence of damage is the CUSUM of those deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

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
LEAST_SHARE = 0.05
"""Share of the progress that the first block must have lost."""
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
