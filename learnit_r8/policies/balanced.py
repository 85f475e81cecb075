"""The plain policies: equal shares of easy and hard samples, random and steady batches; rare groups more often."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .._validation import check_share, is_number
from ..table.radix import keys_of, order_of
from .base import Around, Candidates, Context, Kept, Order, Policy


@dataclass(frozen=True)
class Shuffle(Policy):
    """Every sample once per pass in random order, as by a plain shuffle: the baseline."""

    name = "shuffle"


@dataclass(frozen=True)
class Balanced(Policy):
    """Every sample once per pass; each batch has one sample of each of B loss strata, least used first.

    A chunk is divided into S strata by loss, where S is B rounded up to a multiple of 4, and position p of the order
    takes the next sample of stratum ``spread(S)[(p + shift) % S]``. Four consecutive positions hold one sample of each
    loss quartile, and any run of positions about equal shares of finer quantiles, so parts and ranks may take slices.
    Which strata get the remainder (C mod S) is random: cutting it off the sorted list would neglect the hardest
    samples. With groups, strata are cut from the samples sorted by group, then loss.

    This makes the batch loss smoother. It neither lowers the variance of the gradient nor changes the final accuracy
    (``benchmarks/variance.py``); with groups, it does lower the variance of the gradient.
    """

    name = "balanced"

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        count = len(chunk.indices)
        strata = -(-batch_size // 4) * 4
        ranked = by_loss(chunk.loss)
        if chunk.group is not None:
            ranked = ranked.take(order_of(chunk.group.take(ranked)))
        rows, remainder = divmod(count, strata)
        columns = spread(strata)
        if remainder:
            # A pseudo-random number from the chunk's first sample, which is random as the chunk is in random order.
            number = (int(chunk.indices[0]) * 0x9E3779B97F4A7C15 & (2**64 - 1)) >> 32
            columns = np.roll(columns, -number % strata)
        # A sample's label is the column of its stratum: the place in a run of S that the stratum fills.
        labels = np.empty(count, np.min_scalar_type(strata - 1))
        of_stratum = np.empty(strata, labels.dtype)
        of_stratum[columns] = np.arange(strata)
        labels[ranked] = np.repeat(of_stratum, rows + (of_stratum < remainder) if remainder else rows)
        by_column = grouped(labels, chunk.usage_count)
        # The first columns are longer by the sample that goes into the last, unfinished row.
        order = np.empty(count, np.int64)
        table, longer = order[: rows * strata].reshape(rows, strata), remainder * (rows + 1)
        long_columns = by_column[:longer].reshape(remainder, rows + 1)
        table[:, :remainder] = long_columns[:, :rows].T
        table[:, remainder:] = by_column[longer:].reshape(strata - remainder, rows).T
        order[rows * strata :] = long_columns[:, rows]
        return order


@dataclass(frozen=True)
class Quartile(Policy):
    """Every sample once per pass; each batch has its share of Q1, of Q2-Q3 and of Q4, least used first in each.

    Positions take Q1, middle, Q4, middle, in turn, so every run of positions holds a quarter, a half and a quarter.

    Source: the prototype of learnit-r8.
    """

    name = "quartile"

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        count = len(chunk.indices)
        easy, hard = -(-count // 4), (count + 1) // 4
        labels = np.ones(count, np.uint8)
        ranked = by_loss(chunk.loss)
        labels[ranked[:easy]], labels[ranked[count - hard :]] = 0, 2
        by_label = grouped(labels, chunk.usage_count)
        order = np.empty(count, np.int64)
        order[0::4] = by_label[:easy]
        order[1::2] = by_label[easy : count - hard]
        order[2::4] = by_label[count - hard :]
        return order


@dataclass(frozen=True)
class Steady(Policy):
    """Only the quarter of the seen samples with the lowest loss (Q1), least used first.

    Recovery uses it to stabilize training after a refused loss. If fewer samples than a batch were seen, as after an
    epoch of refused losses, a pass takes every sample.

    Source: the prototype of learnit-r8.
    """

    name = "steady"

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        seen = int((chunk.usage_count > 0).sum())
        if seen < context.batch_size and context.pass_number >= 0:
            return np.ones(len(chunk.indices), bool), None
        lowest = by_loss(np.where(np.isnan(chunk.loss), np.float32(np.inf), chunk.loss))
        keep = np.zeros(len(chunk.indices), bool)
        keep[lowest[: min(seen, max(seen // 4, context.batch_size))]] = True
        return keep, None

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        return order_of(chunk.usage_count)


@dataclass(frozen=True)
class EvenGroups(Around):
    """Another policy, with rare groups visited more often than their share of the data, and common ones less.

    A group with n samples gets visits in proportion to n ** ``exponent``: 1 changes nothing, 0.5 removes half of the
    difference (on a log scale), with 0 all groups get the same. An epoch is still N visits: in each pass, random
    samples of common groups are left out.

    Args:
        inner: The policy that selects and arranges samples.
        exponent: In [0, 1].
        most_often: Most visits of a sample relative to those of a sample in the largest group, >= 1; without a limit,
            groups of a few samples would be memorised.

    Raises:
        ValueError: the exponent or the limit is outside its range.
        TypeError: ``inner`` is not a policy.

    Source: square-root sampling of Mahajan et al. (arXiv:1805.00932) is 0.5, class-balanced sampling 0; compared by
    Kang et al. (arXiv:1910.09217). Measured on digits in ``benchmarks/learning.py``.
    """

    inner: Policy = field(default_factory=Balanced)
    exponent: float = 0.5
    most_often: float = 10.0

    name = "even_groups"
    selects = True
    needs_groups = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("exponent", self.exponent)
        if not (is_number(self.most_often) and 1 <= self.most_often < np.inf):
            raise ValueError(f"most_often must be a number >= 1, got {self.most_often!r}.")

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        keep, weights = self.inner.select(chunk, context, rng)
        size = np.array(context.group_sizes, np.float64)
        rate = np.minimum((size / size.max()) ** (self.exponent - 1), self.most_often)
        chance = (rate / rate.max()).astype(np.float32)
        return keep & (rng.random(len(chunk.indices), np.float32) < chance[chunk.group]), weights


def by_loss(loss: NDArray[np.float32]) -> Order:
    """int64[C], positions by ascending loss; ties in the chunk's order, unseen samples spread evenly."""
    if np.isnan(loss.min()):
        unseen = np.isnan(loss)
        seen, count = loss[~unseen], int(unseen.sum())
        ranks = (2 * np.arange(count) + 1) * len(seen) // (2 * count)
        loss = loss.copy()
        # With no sample seen, all losses are equal.
        loss[unseen] = seen[order_of(keys_of(seen))[ranks]] if seen.size else 0
    return order_of(keys_of(loss))


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
