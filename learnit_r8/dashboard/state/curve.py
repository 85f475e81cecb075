"""Values over steps in bounded memory: lowest, mean and highest of equal stretches, so that spikes survive."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

BUCKETS = 8192
"""Most stretches kept; when they are used up, neighbours are joined and each is twice as long."""


LARGEST = 1e200
"""Values beyond it are left out: their sums would overflow."""

T = TypeVar("T")


class ThinnedList(list[T]):
    """A list that keeps every 2nd item once it is full, then every 4th and so on, and always the newest.

    Args:
        most: Most items kept, even.
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
            # The last item may be one that stays.
            self._is_spare = False


class Columns(NamedTuple):
    """A curve cut into columns; NaN where it has no values.

    Attributes:
        low, mean, high: float64[columns].
    """

    low: NDArray[np.float64]
    mean: NDArray[np.float64]
    high: NDArray[np.float64]


_JOINS = (np.add, np.add, np.minimum, np.maximum)
_EMPTY = (0.0, 0.0, np.inf, -np.inf)
"""How a stretch is joined with another, and what it holds before its first value: count, sum, lowest, highest."""


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
        # Counts, sums, lowest and highest values.
        self._values = [np.full(buckets, empty) for empty in _EMPTY]

    def add(self, step: int, mean: float, low: float, high: float, num_steps: int = 1) -> None:
        """Add some steps that ended with this one; values beyond LARGEST, infinities and NaN are left out.

        ``step`` is the last of them, from 1; not lower than before, except after `cut`.
        """
        if not (abs(mean) < LARGEST and abs(low) < LARGEST and abs(high) < LARGEST):
            return
        place = (max(1, step) - 1) // self.width
        while place >= self._size:
            self._join()
            place = (step - 1) // self.width
        self.last_step = max(self.last_step, step)
        # The values of single steps are not known: the steps fill every stretch they took.
        first = min(place, max(0, step - num_steps) // self.width)
        each = num_steps / (place + 1 - first)
        for values, join, value in zip(self._values, _JOINS, (each, mean * each, low, high), strict=True):
            part = values[first : place + 1]
            join(part, value, out=part)

    def _join(self) -> None:
        """Join neighbours, and empty the second half."""
        half = self._size // 2
        for values, join, empty in zip(self._values, _JOINS, _EMPTY, strict=True):
            values[:half] = join(values[0::2], values[1::2])
            values[half:] = empty
        self.width *= 2

    def cut(self, step: int) -> None:
        """Remove the values after a step, at which the run was resumed."""
        first = -(-step // self.width)
        for values, empty in zip(self._values, _EMPTY, strict=True):
            values[first:] = empty
        self.last_step = min(self.last_step, step)

    def points(self, num: int) -> tuple[NDArray[np.float64], ...]:
        """Steps, lowest, mean and highest values as at most ``num`` points of a line.

        A record of many steps is one point in its middle: drawn at each of its steps it would be a stair.
        """
        last = max(1, self.last_step)
        num = min(num, last)
        found = self.columns(num, 0, last)
        ends = np.arange(1, num + 1) * (last / num)
        same = np.all([np.isclose(values[1:], values[:-1], rtol=1e-9, atol=0) for values in found], axis=0)
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        stops = np.concatenate([starts[1:], [num]]) - 1
        steps = np.ceil((ends[starts] + ends[stops]) / 2)
        return steps, *(values[starts] for values in found)

    @property
    def is_empty(self) -> bool:
        """Whether the curve has no values."""
        return not self.last_step

    def columns(self, num: int, first: int, last: int) -> Columns:
        """The curve after ``first`` steps and up to ``last`` steps, which are more, in ``num`` >= 1 columns."""
        begin, end = min(self._size - 1, first // self.width), min(self._size, -(-last // self.width))
        # Float edges: every column takes at least the stretch in which its left edge lies.
        edges = (first + (last - first) * np.arange(num + 1) / num) / self.width
        starts = np.clip(edges[:-1].astype(np.int64), begin, max(begin, end - 1))
        known = edges[:-1] < max(end, begin)
        if end - begin >= num:
            joined = zip(self._values, _JOINS, strict=True)
            count, total, low, high = (join.reduceat(values[:end], starts) for values, join in joined)
        else:
            count, total, low, high = (values[starts] for values in self._values)
        known &= count > 0
        mean = np.divide(total, count, out=np.full(num, np.nan), where=known)
        return Columns(np.where(known, low, np.nan), mean, np.where(known, high, np.nan))


SMOOTH = 20
"""Share of a curve over which it is smoothed, as one part of so many."""


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running average of a curve, NaN left out; a curve of few values as it is."""
    weight, level = 2 / (1 + max(1, len(values) / SMOOTH)), math.nan
    smooth = np.full(len(values), np.nan)
    for place, value in enumerate(values.tolist()):
        if value == value:
            level = value if level != level else level + weight * (value - level)
            smooth[place] = level
    return smooth


def range_of(values: ArrayLike, *, share: float = 1.0) -> tuple[float, float]:
    """Lowest and highest finite value, apart from each other; (0, 1) if there is none.

    Args:
        values: Any shape.
        share: Share of the values that must fit; the highest of the others may lie beyond.
    """
    array = np.asarray(values, np.float64).ravel()
    array = array[np.isfinite(array)]
    if not len(array):
        return 0.0, 1.0
    low, high = float(array.min()), float(np.quantile(array, share))
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return low, high
