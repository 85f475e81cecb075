"""Policies without settings: batches with equal shares of easy and hard samples, random ones, and steady ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Candidates, Context, Kept, Order, Policy
from .radix import order_of
from .ranking import by_loss, grouped, spread


@dataclass(frozen=True)
class Shuffle(Policy):
    """Every sample once per pass in random order, as by a plain shuffle: the baseline."""

    name = "shuffle"
    is_random = False


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
    is_random = False

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
    is_random = False

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
    is_random = False

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
