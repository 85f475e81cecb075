"""The random order of a pass: a permutation that can be read at any position without storing all of it.

A pass over N samples needs no array of N indices. Each rank goes through four rounds of a Feistel network on
``Z_a x Z_b`` with ``a * b >= N``, whose round functions are small tables of random integers; results beyond N go
through it again. Set-up costs O(sqrt N), a rank about 5 ns. Bijection, chi-square and lag statistics are tested in
``tests/sources/test_permutation.py``, the cost in ``benchmarks/loop_step.py``.

Only raw words of the generator are used: numpy guarantees stable streams for those, but not for
``Generator.integers`` or ``Generator.permutation``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..table.radix import order_of

MAX_SAMPLES = 2**32 - 2**18
"""Largest permutation: ranks are computed in uint32, and ``a * b`` may exceed N by up to 2 sqrt(N)."""

_SMALL = 2**14
"""Up to this size the permutation is stored, as small Feistel tables cannot produce every order."""


def raw_words(key: Sequence[int], count: int) -> NDArray[np.uint64]:
    """Random words that depend on the key alone, the same on every machine and numpy version.

    Args:
        key: Integers, each >= 0.
        count: Number of words, >= 0.

    Returns:
        uint64[count].
    """
    words: NDArray[np.uint64] = np.random.SFC64(np.random.SeedSequence(list(key))).random_raw(count)
    return words


class Permutation:
    """A random order of ``range(size)``, read in slices.

    Args:
        size: N, in [1, MAX_SAMPLES].
        key: Integers >= 0; the same key gives the same order everywhere.

    >>> order = Permutation(10, [0, 1])
    >>> sorted(order(0, 10).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> bool((order(4, 7) == order(0, 10)[4:7]).all())
    True
    """

    def __init__(self, size: int, key: Sequence[int]) -> None:
        self._size = size
        self._whole: NDArray[np.int64] | None = None
        if size <= _SMALL:
            self._whole = order_of(raw_words(key, size))
            return
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        words = raw_words(key, 2 * (self._rows + self._columns)) >> np.uint64(32)
        shifts, start = [], 0
        for length, limit in 2 * [(self._columns, self._rows), (self._rows, self._columns)]:
            part = words[start : start + length] * np.uint64(limit) >> np.uint64(32)
            shifts.append(part.astype(np.uint32))
            start += length
        self._shifts = shifts

    def __call__(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions ``start`` to ``stop`` of the order: int64[stop - start], distinct, each in [0, N)."""
        if self._whole is not None:
            part: NDArray[np.int64] = self._whole[start:stop].copy()
            return part
        # Whole rows, so that the first round is the sum of a column and a row, without table lookups.
        first, last = start // self._columns, -(-stop // self._columns)
        left = np.add.outer(np.arange(first, last, dtype=np.uint32), self._shifts[0])
        right = np.tile(np.arange(self._columns, dtype=np.uint32), last - first)
        places = self._rest(_wrapped(left.ravel(), self._rows), right)[start - first * self._columns :][: stop - start]
        while True:
            outside = np.flatnonzero(places >= self._size)
            if not outside.size:
                indices: NDArray[np.int64] = places.astype(np.int64)
                return indices
            left, right = np.divmod(places[outside], np.uint32(self._columns))
            left += self._shifts[0].take(right)
            places[outside] = self._rest(_wrapped(left, self._rows), right)

    def _rest(self, left: NDArray[np.uint32], right: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """The remaining rounds, given the halves after the first one."""
        # All are in range, and "wrap" spares a check of that.
        right = _wrapped(right + self._shifts[1].take(left, mode="wrap"), self._columns)
        left = _wrapped(left + self._shifts[2].take(right, mode="wrap"), self._rows)
        right = _wrapped(right + self._shifts[3].take(left, mode="wrap"), self._columns)
        left *= np.uint32(self._columns)
        left += right
        return left


def _wrapped(values: NDArray[np.uint32], limit: int) -> NDArray[np.uint32]:
    """``values % limit`` for values below ``2 * limit``, four times as fast."""
    # For x < limit, x - limit wraps around in uint32 to a value above x.
    wrapped: NDArray[np.uint32] = np.minimum(values, values - np.uint32(limit), out=values)
    return wrapped
