"""Values over steps in bounded memory: lowest, mean and highest of equal stretches, so that spikes survive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

BUCKETS = 2048
"""Stretches kept at most; when they are used up, neighbours are joined and each is twice as long."""


LARGEST = 1e200
"""Values beyond it are no losses, and their sums would overflow."""

T = TypeVar("T")


class Thinned(list[T]):
    """A list that keeps every 2nd, then every 4th ... item once there are too many, and always the newest.

    Args:
        most: Items to keep, even.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._stride = 1
        self._count = 0
        self._is_spare = False

    def add(self, item: T) -> None:
        """Add an item at the end."""
        if self._is_spare:
            self.pop()
        self.append(item)
        self._is_spare = self._count % self._stride != 0
        self._count += 1
        if len(self) > self._most:
            del self[1::2]
            self._stride *= 2

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Keep only some of the items."""
        kept = [item for item in self if wanted(item)]
        if len(kept) < len(self):
            self[:] = kept
            # The last one left was not put there to be replaced by the next.
            self._is_spare = False


class Columns(NamedTuple):
    """A curve cut into columns; NaN where nothing is known.

    Attributes:
        low, mean, high: float64[columns].
    """

    low: NDArray[np.float64]
    mean: NDArray[np.float64]
    high: NDArray[np.float64]


class Curve:
    """Values over steps.

    Args:
        buckets: Stretches to keep, even.

    Attributes:
        width: Steps in a stretch, a power of two.
        last_step: The last step added, 0 before the first.
    """

    def __init__(self, buckets: int = BUCKETS) -> None:
        self._size = buckets
        self.width = 1
        self.last_step = 0
        self._count = np.zeros(buckets)
        self._total = np.zeros(buckets)
        self._low = np.full(buckets, np.inf)
        self._high = np.full(buckets, -np.inf)

    def add(self, step: int, mean: float, low: float, high: float, num_steps: int = 1) -> None:
        """Add some steps that ended with this one, 1-based; what is not finite, or next to it, is left out.

        Args:
            step: Steps done; not lower than before, but for `cut`.
            mean: Mean of their values.
            low: Lowest value.
            high: Highest value.
            num_steps: How many they are.
        """
        if not (abs(mean) < LARGEST and abs(low) < LARGEST and abs(high) < LARGEST):
            return
        place = (max(1, step) - 1) // self.width
        while place >= self._size:
            self._join()
            place = (step - 1) // self.width
        self.last_step = max(self.last_step, step)
        # Of several steps only this much is known of each: they fill all the stretches they took.
        first = min(place, max(0, step - num_steps) // self.width)
        each = num_steps / (place + 1 - first)
        where = slice(first, place + 1)
        self._count[where] += each
        self._total[where] += mean * each
        np.minimum(self._low[where], low, out=self._low[where])
        np.maximum(self._high[where], high, out=self._high[where])

    def _join(self) -> None:
        """Join neighbours; the freed half is empty."""
        half = self._size // 2
        for values, join, empty in (
            (self._count, np.add, 0.0),
            (self._total, np.add, 0.0),
            (self._low, np.minimum, np.inf),
            (self._high, np.maximum, -np.inf),
        ):
            values[:half] = join(values[0::2], values[1::2])
            values[half:] = empty
        self.width *= 2

    def cut(self, step: int) -> None:
        """Forget what came after a step: the run was resumed there."""
        first = -(-step // self.width)
        for values, empty in ((self._count, 0.0), (self._total, 0.0), (self._low, np.inf), (self._high, -np.inf)):
            values[first:] = empty
        self.last_step = min(self.last_step, step)

    def rows(self) -> Iterator[tuple[int, float, float, float]]:
        """Last step, lowest, mean and highest value of every stretch that is known."""
        for place in np.flatnonzero(self._count).tolist():
            mean = self._total[place] / self._count[place]
            yield (place + 1) * self.width, float(self._low[place]), float(mean), float(self._high[place])

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return not self.last_step

    def columns(self, num: int, first: int, last: int) -> Columns:
        """The curve from one step to another, in so many columns.

        Args:
            num: Columns, >= 1.
            first: Steps done before it, >= 0.
            last: Steps done at its end, > first.
        """
        begin, end = first // self.width, min(self._size, -(-last // self.width))
        # Float edges: every column takes at least the bucket its left edge lies in.
        edges = (first + (last - first) * np.arange(num + 1) / num) / self.width
        starts = np.clip(edges[:-1].astype(np.int64), begin, max(begin, end - 1))
        known = edges[:-1] < max(end, begin)
        if begin >= self._size:
            nothing = np.full(num, np.nan)
            return Columns(nothing, nothing, nothing)
        if end - begin >= num:
            count, total = np.add.reduceat(self._count[:end], starts), np.add.reduceat(self._total[:end], starts)
            low = np.minimum.reduceat(self._low[:end], starts)
            high = np.maximum.reduceat(self._high[:end], starts)
        else:
            count, total, low, high = (values[starts] for values in (self._count, self._total, self._low, self._high))
        known &= count > 0
        mean = np.divide(total, count, out=np.full(num, np.nan), where=known)
        return Columns(np.where(known, low, np.nan), mean, np.where(known, high, np.nan))
