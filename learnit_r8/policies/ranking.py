"""Rankings of the samples of a chunk, the same on every processor: the chunk's own random order breaks ties."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from .base import Order
from .radix import keys_of, order_of


def by_loss(loss: NDArray[np.float32]) -> Order:
    """int64[C], positions by ascending loss; ties in the chunk's order, unseen samples spread evenly."""
    return order_of(keys_of(fill_in(loss) if np.isnan(loss.min()) else loss))


def fill_in(loss: NDArray[np.float32]) -> NDArray[np.float32]:
    """The losses with unseen samples spread evenly over the ranks of the seen ones."""
    unseen = np.isnan(loss)
    if not unseen.any():
        return loss
    seen = loss[~unseen]
    if not seen.size:
        return np.zeros(len(loss), np.float32)
    count = int(unseen.sum())
    places = (2 * np.arange(count) + 1) * len(seen) // (2 * count)
    filled: NDArray[np.float32] = loss.copy()
    filled[unseen] = seen[order_of(keys_of(seen))[places]]
    return filled


def grouped(labels: NDArray[np.unsignedinteger], usage_count: NDArray[np.int64]) -> Order:
    """int64[C], positions by label, then by use count, then in the chunk's order.

    Args:
        labels: uint[C].
        usage_count: int64[C].
    """
    if (usage_count == usage_count[0]).all():
        # Positions are in random order already, so that keeping it within a label shuffles its samples.
        return order_of(labels)
    by_use = order_of(usage_count)
    return by_use.take(order_of(labels.take(by_use)))


@functools.lru_cache(maxsize=8)
def spread(strata: int) -> Order:
    """int64[S], the stratum of each position, chosen so that every run of positions is spread over all strata.

    Quartiles alternate with period 4; within a quartile the strata follow the van der Corput sequence. S is a
    multiple of 4.

    >>> spread(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    quarter = strata // 4
    halves = np.arange(quarter)
    reverse = np.zeros(quarter, np.int64)
    for _ in range(max(1, quarter - 1).bit_length()):
        reverse = reverse << 1 | halves & 1
        halves >>= 1
    within = order_of(order_of(reverse))
    return (np.array([0, 2, 1, 3]) * quarter + within[:, None]).ravel()
