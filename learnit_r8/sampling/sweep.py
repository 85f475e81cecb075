"""A sweep: one run through the data in random order, and the selected samples that did not fill a batch yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .permutation import Permutation

Weighted = tuple[NDArray[np.int64], NDArray[np.float32] | None]
"""int64[M] samples, and float32[M] factors for their losses, or None."""


class Sweep:
    """Hands out all samples once, in parts; after loading a refitted state, the samples of its stored order.

    Args:
        size: N, samples in the data.
        part: Samples handed out at a time.
        key: Key of the random order; see `Permutation`.

    Attributes:
        rank: Samples handed out so far.
        left_over: Samples that were selected but did not fill a batch.
    """

    def __init__(self, size: int, part: int, key: Sequence[int]) -> None:
        self.rank = 0
        self.left_over: Weighted = (np.empty(0, np.int64), None)
        self._size = size
        self._part = part
        self._order: Callable[[int, int], NDArray[np.int64]] = Permutation(size, key)
        self._own_order: NDArray[np.int64] | None = None

    @property
    def is_done(self) -> bool:
        """Whether every sample was handed out."""
        return self.rank == self._size

    def next_part(self) -> NDArray[np.int64]:
        """int64[M], the next samples."""
        start, self.rank = self.rank, min(self.rank + self._part, self._size)
        return self._order(start, self.rank)

    def add(self, indices: NDArray[np.int64], weights: NDArray[np.float32] | None) -> Weighted:
        """Append samples to those left over; missing weights are 1."""
        before, weights_before = self.left_over
        if weights is not None or weights_before is not None:
            weights = np.concatenate([_or_ones(weights_before, len(before)), _or_ones(weights, len(indices))])
        return np.concatenate([before, indices]), weights

    def drop(self, gone: NDArray[np.bool_]) -> None:
        """Remove the samples of a mask from those left over."""
        if gone.any():
            indices, weights = self.left_over
            self.left_over = indices[~gone], None if weights is None else weights[~gone]

    def leave(self, count: int, kept: Weighted) -> Weighted:
        """Return the first ``count`` samples, and keep the others for the next part."""
        indices, weights = kept
        self.left_over = indices[count:], None if weights is None else weights[count:]
        return indices[:count], None if weights is None else weights[:count]

    def state_dict(self) -> dict[str, Any]:
        """The position, and the samples left over."""
        indices, weights = self.left_over
        return {
            "rank": self.rank,
            "indices": indices.copy(),
            "weights": None if weights is None else weights.copy(),
            "order": None if self._own_order is None else self._own_order.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.rank = state["rank"]
        weights = state["weights"]
        self.left_over = np.array(state["indices"]), None if weights is None else np.array(weights)
        if state["order"] is not None:
            order = self._own_order = np.array(state["order"], np.int64)
            self._size, self._order = len(order), lambda start, stop: order[start:stop].copy()


def _or_ones(weights: NDArray[np.float32] | None, count: int) -> NDArray[np.float32]:
    return np.ones(count, np.float32) if weights is None else weights
