"""Everything once a pass, in batches with equal shares of easy and hard samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Candidates, Order, Policy
from .ranking import by_loss, positions_of, spread, usage_first


@dataclass(frozen=True)
class Balanced(Policy):
    """Every sample once a pass, each batch one sample from each of B loss strata, least used first.

    With S, the next multiple of 4 from B, a chunk is cut into S strata by loss and place p of the order takes the
    next sample of stratum ``spread(S)[(p + shift) % S]``. Four consecutive places hold one sample of each loss
    quartile, and any run of places about equal shares of finer quantiles, so parts and ranks may take slices.
    Which strata get the remainder (C mod S) is random: cutting it off the sorted list would starve the hardest.
    With groups, strata are cut from the samples sorted by group, then loss.

    It makes the batch loss smoother; it does not lower the variance of the gradient, nor change the final accuracy
    (``benchmarks/variance.py``). Groups do lower the variance of the gradient.
    """

    name = "balanced"
    is_random = False

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        count = len(chunk.indices)
        strata = -(-batch_size // 4) * 4
        ranked = by_loss(chunk.loss)
        if chunk.group is not None:
            # 16 bits hold every code, and are sorted by their digits: three times as fast.
            ranked = ranked[np.argsort(chunk.group[ranked].astype(np.uint16), kind="stable")]
        height, remainder = -(-count // strata), count % strata
        columns = spread(strata)
        keys = usage_first(chunk.usage_count, ranked)
        if remainder:
            columns = np.roll(columns, -_any_number(chunk) % strata)
            sizes = np.full(strata, height - 1)
            sizes[columns[:remainder]] += 1
            rows = np.full((strata, height), np.iinfo(keys.dtype).max, keys.dtype)
            rows[np.arange(height) < sizes[:, None]] = keys
        else:
            rows = keys.reshape(strata, height)
        # Positions are in random order already, so sorting a stratum by position shuffles it by loss.
        rows.sort(axis=1)
        return positions_of(rows[columns].T.ravel()[:count])


@dataclass(frozen=True)
class Quartile(Policy):
    """Every sample once a pass, each batch its share of Q1, of Q2-Q3 and of Q4, least used first in each.

    Places take Q1, middle, Q4, middle, in turn, so that every run of places holds a quarter, a half and a quarter.

    Source: README of learnit-r8, "Intelligent Batch Construction".
    """

    name = "quartile"
    uses_groups = False
    is_random = False

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        count = len(chunk.indices)
        keys = usage_first(chunk.usage_count, by_loss(chunk.loss))
        easy, hard = -(-count // 4), (count + 1) // 4
        order = np.empty(count, keys.dtype)
        order[0::4] = np.sort(keys[:easy])
        order[1::2] = np.sort(keys[easy : count - hard])
        order[2::4] = np.sort(keys[count - hard :])
        return positions_of(order)


def _any_number(chunk: Candidates) -> int:
    """A number that depends on the chunk alone: its order is random, so its first sample is as good as a generator."""
    return (int(chunk.indices[0]) * 0x9E3779B97F4A7C15 & (2**64 - 1)) >> 32
