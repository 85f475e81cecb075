"""Ranking the samples of a chunk, the same on every processor.

Ties are broken by the chunk's own random order, through sorts of distinct integers; numpy's ``argsort`` of floats
breaks them as the processor's vector unit likes.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Order


def by_loss(loss: NDArray[np.float32]) -> NDArray[np.int32]:
    """int32[C], positions by rising loss, ties and unseen samples in the chunk's order."""
    lowest = loss.min()
    if np.isnan(lowest):
        loss = filled_in(loss)
    keys = loss.view(np.int32).astype(np.int64)
    # The bits of floats sort like integers, but backwards below zero; flipping the lower ones puts them right.
    if not lowest >= 0:
        keys ^= (keys >> 63) & 0x7FFFFFFF
    keys <<= 32
    keys += np.arange(len(loss))
    keys.sort()
    ranked: NDArray[np.int32] = keys.astype(np.int32)
    return ranked


def filled_in(loss: NDArray[np.float32]) -> NDArray[np.float32]:
    """The losses with unseen samples spread evenly over the ranks of the seen ones."""
    unseen = np.isnan(loss)
    if not unseen.any():
        return loss
    known = np.sort(loss[~unseen])
    if not known.size:
        return np.zeros(len(loss), np.float32)
    count = int(unseen.sum())
    filled: NDArray[np.float32] = loss.copy()
    filled[unseen] = known[(2 * np.arange(count) + 1) * len(known) // (2 * count)]
    return filled


def usage_first(usage_count: NDArray[np.int64], positions: NDArray[np.int32]) -> NDArray[np.signedinteger[Any]]:
    """Keys of some positions that sort by use, then by position; `positions_of` takes the positions out again."""
    if (usage_count == usage_count[0]).all():
        return positions
    return usage_count[positions] << 32 | positions


def positions_of(keys: NDArray[np.signedinteger[Any]]) -> Order:
    """int64, the positions in the lower 32 bits of keys."""
    positions: Order = keys.astype(np.int32, copy=False).astype(np.int64)
    return positions


@functools.lru_cache(maxsize=8)
def spread(strata: int) -> Order:
    """int64[S]: which stratum each place takes, so that every run of places is spread over all strata.

    Quartiles alternate with period 4; within a quartile the strata follow the van der Corput sequence. S is a
    multiple of 4.

    >>> spread(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    quarter = strata // 4
    halves = np.arange(quarter, dtype=np.uint64)
    inverse = np.zeros(quarter)
    scale = 0.5
    while halves.any():
        inverse += (halves & np.uint64(1)) * scale
        halves >>= np.uint64(1)
        scale /= 2
    within = np.argsort(np.argsort(inverse))
    return (np.array([0, 2, 1, 3]) * quarter + within[:, None]).ravel()
