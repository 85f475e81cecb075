"""The first losses: which of them are too high, while there are too few for thresholds.

The rule needs eight losses and no settings. In 214 healthy starts of ten tasks with heavy tails and batches of 1 to 256
(``benchmarks/incidents.py``), no loss was a hundred times as high as the highest before it, and there were never three
of four losses three times as high as the highest before them. While all losses are equal, only the first counts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

LEAST_JUDGED = 8
"""Losses that must be known before one is refused."""

LEAST_CLIPPED = 3
"""Losses that must be known before one is clipped."""

ABSURD, HIGH, BELIEVED = 100.0, 3.0, 2.0
"""Multiples of the highest loss before: from which a loss is refused at once; from which three of four losses are; and
to which a single loss is clipped."""

ALONE = 10.0
"""Multiple of the second highest loss to which the highest is clipped, so that one outlier does not hide later ones."""

RECENT = 4
"""Number of last losses among which high ones are counted."""


class FirstLosses(NamedTuple):
    """Statistics of the first losses of a run.

    Attributes:
        known: Number of losses so far.
        lowest: The lowest of them.
        highest: The highest except for the last four.
        second: The second highest except for those.
        recent: The last four, oldest first.
    """

    known: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    second: float = -math.inf
    recent: tuple[float, ...] = ()

    def times(self, factor: float, highest: float, second: float) -> float:
        """The limit that is ``factor`` times as high as the highest loss; infinite while all losses are equal.

        For losses that may be negative, the range of the losses replaces the distance from 0.

        Args:
            factor: Multiple of the highest loss.
            highest: The highest loss.
            second: The second highest, which limits how far the highest counts.

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
        """Clip a loss to twice the highest before it."""
        return min(loss, self._times_all(BELIEVED)) if self.known >= LEAST_CLIPPED else loss

    def with_loss(self, loss: float) -> FirstLosses:
        """The statistics with one more finite loss."""
        recent, highest, second = (*self.recent, loss), self.highest, self.second
        if len(recent) > RECENT:
            second, highest = sorted((second, highest, recent[0]))[1:]
        return FirstLosses(self.known + 1, min(self.lowest, loss), highest, second, recent[-RECENT:])

    def refuses(self, loss: float) -> bool:
        """Whether a loss shows that the weights are damaged: absurdly high, or the third high one of four.

        >>> known = FirstLosses(known=8, lowest=1.0, highest=1.0, second=1.0, recent=(1.0,) * 4)
        >>> known.refuses(99.0), known.refuses(101.0)
        (False, True)
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
        limit = self._times_all(ABSURD)
        if limit == math.inf and self.lowest:
            # All losses are equal, so that their distance from 0 is the only scale; of 0 there is none.
            limit = self.lowest + (ABSURD - 1) * abs(self.lowest)
        if loss > limit:
            return True
        high = self.times(HIGH, self.highest, self.second)
        return loss > high and sum(each > high for each in self.recent[1 - RECENT :]) >= 2
