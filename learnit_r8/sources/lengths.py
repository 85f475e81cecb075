"""Lengths: batches of samples of similar length, within a budget of tokens.

The samples are sorted by length once and cut into buckets, and each bucket has batches of one size, so that the longest
of its samples, times that size, is within the budget. In every pass the samples of a bucket are shuffled, and the
batches of all buckets come in random order. How many batches there are is the same in each pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..table.exclusions import holds
from ..table.radix import order_of
from .permutation import Permutation

SIMILAR = 1.1
"""Longest length in a bucket, in units of the shortest, where that has batches enough. Measured in
``benchmarks/buckets.py``: narrower ones save little more."""

LEAST_BATCHES = 4
"""Batches in a bucket, at least, among which its samples are shuffled, unless there are fewer in all."""

Ints = NDArray[np.int64]


class Bucket(NamedTuple):
    """Samples of similar length.

    Attributes:
        members: int64[M], in the order of their indices.
        size: Samples in a batch of theirs; fewer in the last.
        first: Batches of the buckets before it.
    """

    members: Ints
    size: int
    first: int

    @property
    def num_batches(self) -> int:
        """Batches in a pass."""
        return -(-len(self.members) // self.size)


class Buckets:
    """All samples by their length.

    Args:
        lengths: int[N], tokens of each sample, >= 1.
        max_tokens: Most tokens of a batch, padded to its longest sample; at least those of the longest sample.
        num_samples: N.
        most: Most samples of a batch; None for as many as fit.

    Raises:
        TypeError: the lengths are no whole numbers.
        ValueError: there is not one for each sample, or one of them is below 1 or beyond the budget.

    Attributes:
        lengths: int32[N], as given.
        max_tokens: As given.
        largest: Samples in the largest batch.
        num_batches: Batches in a pass.
    """

    def __init__(self, lengths: ArrayLike, max_tokens: int, *, num_samples: int, most: int | None = None) -> None:
        given = np.asarray(lengths)
        if given.dtype.kind not in "iu":
            raise TypeError(f"lengths must be whole numbers, the tokens of each sample, got {given.dtype}.")
        if given.shape != (num_samples,):
            raise ValueError(f"lengths must have shape ({num_samples},), one for each sample, got {given.shape}.")
        low, high = int(given.min()), int(given.max())
        if low < 1 or high > max_tokens:
            which, place = (low, given.argmin()) if low < 1 else (high, given.argmax())
            raise ValueError(
                f"lengths must be in [1, max_tokens={max_tokens}], got {which} for sample {int(place)}; cut such "
                "samples, leave them out, or give more max_tokens."
            )
        self.lengths, self.max_tokens = given.astype(np.int32), max_tokens
        self._buckets = self._cut(num_samples if most is None else most)
        self.largest = max(bucket.size for bucket in self._buckets)
        self._first = np.array([bucket.first for bucket in self._buckets])
        self.num_batches = sum(bucket.num_batches for bucket in self._buckets)

    def _cut(self, most: int) -> list[Bucket]:
        order = order_of(-self.lengths.astype(np.int64))
        ordered = self.lengths[order]
        buckets: list[Bucket] = []
        start, num_batches = 0, 0
        while start < len(order):
            longest = int(ordered[start])
            size = max(1, min(most, self.max_tokens // longest))
            similar = int(np.searchsorted(-ordered, -(longest / SIMILAR), side="right"))
            end = min(len(order), max(similar, start + LEAST_BATCHES * size))
            # Whole batches, so that only the last bucket has a short one; and no rest that is less than a bucket.
            end = start + -(-(end - start) // size) * size
            end = len(order) if len(order) - end < size else end
            own = order[start:end]
            bucket = Bucket(own[order_of(own)], size, num_batches)
            buckets.append(bucket)
            start, num_batches = end, num_batches + bucket.num_batches
        return buckets

    def batches(self, numbers: Ints, key: Sequence[int]) -> tuple[list[Ints], list[int]]:
        """Batches of a pass, and the bucket of each.

        Args:
            numbers: int64[K], which ones, each in [0, num_batches).
            key: Key of the order of the samples within their buckets.
        """
        of = np.searchsorted(self._first, numbers, side="right") - 1
        orders: dict[int, Permutation] = {}
        found = []
        for number, place in zip(numbers.tolist(), of.tolist(), strict=True):
            bucket = self._buckets[place]
            order = orders.get(place)
            if order is None:
                order = orders[place] = Permutation(len(bucket.members), [*key, place])
            start = (number - bucket.first) * bucket.size
            found.append(bucket.members[order(start, min(start + bucket.size, len(bucket.members)))])
        return found, of.tolist()

    def size_in(self, place: int) -> int:
        """Samples in a batch of a bucket."""
        return self._buckets[place].size

    def other(self, place: int, left_out: Ints) -> Ints:
        """int64[<= 1], a sample of a bucket that is not among some, which are in ascending order."""
        members = self._buckets[place].members
        return members[~holds(left_out, members)][:1]

    def fitting(self, indices: Ints) -> Ints:
        """The first of some samples, as many as fit into a batch."""
        longest = np.maximum.accumulate(self.lengths[indices].astype(np.int64))
        count = int(np.count_nonzero(longest * np.arange(1, len(indices) + 1) <= self.max_tokens))
        return indices[: max(1, count)]

    def batches_in(self, num_samples: int) -> int:
        """Batches that hold about so many samples, at least 1."""
        return max(1, round(num_samples / (len(self.lengths) / self.num_batches)))

    def digest(self) -> str:
        """Names the lengths and the budget, to compare them with those of a saved run."""
        content = hashlib.sha256(self.lengths.tobytes()).hexdigest()[:16]
        return f"{content} within {self.max_tokens}, at most {self.largest}"
