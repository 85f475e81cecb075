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

ALONE = 10.0
"""How many times as high as the second highest the highest loss counts: one outlier must not hide all that follows."""

RECENT = 4
"""Last losses that high ones are counted among."""


class FirstLosses(NamedTuple):
    """What is known of the first losses of a run.

    Attributes:
        known: Losses so far.
        lowest: The lowest of them.
        highest: The highest but for the last four.
        second: The second highest but for those.
        recent: The last four, oldest first.
    """

    known: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    second: float = -math.inf
    recent: tuple[float, ...] = ()

    def times(self, factor: float, highest: float, second: float) -> float:
        """What is ``factor`` times as high as the highest loss; infinite while the losses have not differed.

        Of losses that may be negative the range takes the place of the distance to 0.

        Args:
            factor: See above.
            highest: The highest loss.
            second: The second highest, which the highest is held against.

        >>> FirstLosses(lowest=1.0).times(3.0, 2.0, 1.5)
        6.0
        >>> FirstLosses(lowest=-3.0).times(3.0, -2.0, -2.0)
        0.0
        """
        if not self.lowest < highest:
            return math.inf
        if self.lowest < second:
            highest = min(highest, self._above(second, ALONE))
        return self._above(highest, factor)

    def _above(self, loss: float, factor: float) -> float:
        return loss + (factor - 1) * (loss if self.lowest > 0 else max(loss - self.lowest, loss))

    def _times_all(self, factor: float) -> float:
        second, highest = sorted((self.second, self.highest, *self.recent))[-2:]
        return self.times(factor, highest, second)

    def believed(self, loss: float) -> float:
        """The part of a loss to learn from: all of it, or twice the highest before it."""
        return min(loss, self._times_all(BELIEVED)) if self.known >= LEAST_CLIPPED else loss

    def with_loss(self, loss: float) -> FirstLosses:
        """What is known with one more loss, which is finite."""
        recent, highest, second = (*self.recent, loss), self.highest, self.second
        if len(recent) > RECENT:
            second, highest = sorted((second, highest, recent[0]))[1:]
        return FirstLosses(self.known + 1, min(self.lowest, loss), highest, second, recent[-RECENT:])

    def refuses(self, loss: float) -> bool:
        """Whether a loss shows that the weights are damaged: absurdly high, or the third high one of four.

        >>> known = FirstLosses()
        >>> for each in (2.0, 1.0, 1.5, 1.8) * 3:
        ...     known = known.with_loss(each)
        >>> known.refuses(250.0), known.refuses(90.0)
        (True, False)
        >>> known.with_loss(9.0).with_loss(8.0).refuses(7.0)
        True
        """
        if self.known < LEAST_JUDGED:
            return False
        if loss > self._times_all(ABSURD):
            return True
        high = self.times(HIGH, self.highest, self.second)
        return loss > high and sum(each > high for each in self.recent[1 - RECENT :]) >= 2
