"""The first losses: what a high one is while too few are known for thresholds.

The rule needs eight losses and no setting. In 214 healthy starts of ten tasks with heavy tails and batches of 1 to 256
(``benchmarks/incidents.py``) no loss was a hundred times as high as the highest before it, and three of four losses
were never three times as high as the highest before those.
"""

from __future__ import annotations

import math
from typing import NamedTuple

LEAST_JUDGED = 8
"""Losses that must be known before one is refused."""

LEAST_CLIPPED = 3
"""Losses that must be known before one is clipped."""

ABSURD, HIGH, BELIEVED = 100.0, 3.0, 2.0
"""How many times as high as the highest before: a loss that is refused at once; one of which three in four are; and the
most that is learned from a single one."""


class FirstLosses(NamedTuple):
    """What is known of the first losses of a run.

    Attributes:
        known: Losses so far.
        highest: The highest; a high one counts as twice the highest before it, at most.
        lowest: The lowest.
        high: Bits of the last four losses, the newest last: 1 for a high one.
    """

    known: int = 0
    highest: float = -math.inf
    lowest: float = math.inf
    high: int = 0

    def times(self, factor: float) -> float:
        """What is ``factor`` times as high as the highest loss; infinite while the losses have not differed.

        Of losses that may be negative the range takes the place of the distance to 0.

        >>> FirstLosses(known=9, highest=2.0, lowest=1.0).times(3.0)
        6.0
        >>> FirstLosses(known=9, highest=-2.0, lowest=-3.0).times(3.0)
        0.0
        """
        if not self.lowest < self.highest:
            return math.inf
        unit = self.highest if self.lowest > 0 else max(self.highest - self.lowest, self.highest)
        return self.highest + (factor - 1) * unit

    def believed(self, loss: float) -> float:
        """The part of a loss to learn from: all of it, or twice the highest before it."""
        return min(loss, self.times(BELIEVED)) if self.known >= LEAST_CLIPPED else loss

    def with_loss(self, loss: float) -> FirstLosses:
        """What is known with one more loss, which is finite."""
        is_high = self.known >= LEAST_CLIPPED and loss > self.times(HIGH)
        highest = self.highest if is_high else max(self.highest, self.believed(loss))
        return FirstLosses(self.known + 1, highest, min(self.lowest, loss), (self.high << 1 | is_high) & 0b1111)

    def refuses(self, loss: float) -> bool:
        """Whether a loss shows that the weights are damaged: absurdly high, or the third high one of four.

        >>> known = FirstLosses(known=8, highest=2.0, lowest=1.0)
        >>> known.refuses(250.0), known.refuses(90.0)
        (True, False)
        >>> known.with_loss(9.0).with_loss(8.0).refuses(7.0)
        True
        """
        if self.known < LEAST_JUDGED:
            return False
        if loss > self.times(ABSURD):
            return True
        return loss > self.times(HIGH) and (self.high & 0b111).bit_count() >= 2
