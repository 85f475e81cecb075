"""A raised level: losses that are not high enough for a spike, but stay higher than they were.

Weights may be hurt without losing half of the progress made, and hurt weights seldom come back to where they were.
Blocks of losses tell: the mean of a block, with its wildest losses cut, lies within a few of its own standard
deviations of the usual mean, whatever single losses do. The evidence is the CUSUM of those deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

BLOCK = 16
"""Losses in a block, which are also those between two looks at the thresholds."""
ALARM = 10.0
"""Evidence that is enough: two blocks in a row that are clearly up, or several that are somewhat up."""
ALARM_AFTER_RESTORE = 2.5
"""Likewise for losses that were to show that a restore has helped."""
WILD = 0.05
"""Where more usual losses than this share look like spikes, as those of single samples do, blocks of them tell
nothing."""
USUAL = 1.25
"""Standard deviations that a block may be up without speaking for a raised level."""
MOST = 6.25
"""Standard deviations beyond which a block says no more: a single one is never enough."""
WORTH_OF_A_SPIKE = 0.4
"""Evidence of a spike counts besides, by this factor: both at once are seldom luck."""
LEAST_SHARE = 0.05
"""Share of the progress that must be lost at first, """
LEAST_LATER = 0.4
"""and what part of that by each block later, where that is more than noise: hurt weights come back some of the way."""
CUT = 0.97
"""Share of usual losses that are not cut."""


class BlockStatistics(NamedTuple):
    """What blocks of usual losses are like.

    Attributes:
        cut: Losses beyond it count as this.
        mean: Mean of the usual ones, so cut.
        deviation: Standard deviation of a block's mean, >= 0.
        least: A block's mean must be beyond it to be the first to say anything.
    """

    cut: float = math.inf
    mean: float = 0.0
    deviation: float = 0.0
    least: float = math.inf


UNKNOWN = BlockStatistics()
"""While too few losses are known, or no progress was made that could be lost."""


def cut_figures(ordered: Sequence[float]) -> tuple[float, float, float]:
    """Where losses in order are cut, and the mean and the standard deviation of a block of such losses."""
    count = len(ordered)
    kept = int(CUT * count)
    cut = ordered[kept]
    mean = (sum(ordered[:kept]) + (count - kept) * cut) / count
    far = cut - mean
    # The distance between two points is a sum of squares that costs no loop in Python.
    total = math.dist(ordered[:kept], (mean,) * kept) ** 2 + (count - kept) * far * far
    return cut, mean, math.sqrt(total / (count * BLOCK))


def raised_by(block: Sequence[float], before: Sequence[float], level: BlockStatistics, evidence: float) -> float:
    """Evidence after one more block.

    Args:
        block: Its losses.
        before: The losses just before it, which are not among the usual ones yet. What creeps up has done so there
            already, and is no raised level.
        level: What is usual.
        evidence: What there was before, >= 0.

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
