"""A draft: shows samples to the policy, and makes a chunk of the batches that it arranges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies.base import Candidates, Context, Policy
from ..table.exclusions import holds
from ..table.records import reordered
from ..table.table import SampleTable
from .chunk import Chunk, Planned
from .sweep import Weighted


class Draft:
    """Makes chunks of samples that the policy has selected and arranged.

    Args:
        table: The sample table.
        policy: Selects and arranges samples.
        context: The policy's context.
        rng: The policy's generator.

    Attributes:
        typical: Mean estimate of all samples last passed to `select`, for `LossLearner.with_trend`.
        pool: float32[P], their estimates; None before.
    """

    def __init__(self, table: SampleTable, policy: Policy, context: Context, rng: np.random.Generator) -> None:
        self._table, self._storage, self._learner = table, table.storage, table.learner
        self._policy = policy
        self._context = context
        self._rng = rng
        self.typical = math.nan
        self.pool: NDArray[np.float32] | None = None

    def select(self, indices: NDArray[np.int64]) -> Weighted:
        """The samples that the policy selects, and their weights."""
        records = self._storage.records.gather(indices)
        self.typical = self._mean_of(records)
        candidates = self._candidates(indices, records)
        self.pool = candidates.loss
        keep, weights = self._policy.select(candidates, self._context, self._rng)
        return indices[keep], None if weights is None else weights[keep]

    def first(self, indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The ``count`` of some samples that the policy draws first."""
        return indices[self._arranged(self._candidates(indices, self._storage.records.take(indices)))[:count]]

    def chunk(
        self, samples: Weighted, *, sweep: int, fill: bool, watch_rng: np.random.Generator | None = None
    ) -> Chunk:
        """A chunk of the batches that the policy arranges from some samples.

        Args:
            samples: The samples and their weights.
            sweep: Number of their sweep; -1 outside any pass.
            fill: Whether to fill up the last batch.
            watch_rng: Shuffles watched samples, to spread them over the batches; None if there are none.
        """
        table, batch_size, (indices, weights) = self._table, self._table.batch_size, samples
        records = self._storage.records.gather(indices)
        candidates = self._candidates(indices, records)
        order = self._arranged(candidates)
        if watch_rng is not None:
            watched = holds(self._storage.exclusions.watched, indices[order])
            order = spread_evenly(order, watched, batch_size, watch_rng)
        records = reordered(records, order)
        missing = -len(indices) % batch_size
        sizes = np.full(-(-len(indices) // batch_size), batch_size)
        sizes[-1] -= missing
        in_pass = sweep >= 0
        return Chunk(
            indices.take(order),
            table,
            sizes=sizes,
            expected=self._learner.expected(records, sizes),
            typical=self._mean_of(records) if math.isnan(self.typical) else self.typical,
            pass_number=self._context.pass_number if in_pass else -1,
            sweep=sweep,
            fill=missing if fill else 0,
            weights=None if weights is None else weights[order],
            planned=Planned(candidates.loss if self.pool is None else self.pool, candidates.loss, order),
            records=records if in_pass else None,
        )

    def chunk_of_batches(
        self, batches: list[NDArray[np.int64]], places: list[int], full: list[int], *, sweep: int
    ) -> Chunk:
        """A chunk of batches of different sizes; the policy arranges the samples among those of one place.

        Args:
            batches: int64[B] each, in drawing order.
            places: For each, a number; batches of one number may exchange samples.
            full: For each, the samples of a full batch of its place.
            sweep: Number of their sweep.
        """
        sizes, numbers = np.array([len(each) for each in batches]), np.array(places)
        indices = np.concatenate(batches)
        of = np.repeat(numbers, sizes)
        order = np.arange(len(indices))
        for place in dict.fromkeys(places):
            own = np.flatnonzero(of == place)
            candidates = self._candidates(indices[own], self._storage.records.gather(indices[own]))
            size = full[places.index(place)]
            arranged = self._policy.arrange(candidates, size, self._rng)
            if (sizes[numbers == place][:-1] != size).any():
                # Some batches have lost samples, so that an order of full ones fits them no better than any.
                arranged = np.arange(len(own))
            order[own] = own[arranged]
        records = self._storage.records.gather(indices[order])
        loss = self._storage.estimates(self._storage.records.gather(indices))
        return Chunk(
            indices[order],
            self._table,
            sizes=sizes,
            expected=self._learner.expected(records, sizes),
            typical=self._mean_of(records),
            pass_number=self._context.pass_number,
            sweep=sweep,
            planned=Planned(loss, loss, order),
            records=records,
        )

    def _mean_of(self, records: NDArray[Any]) -> float:
        return self._learner.expected(records, np.array([len(records)]))[0]

    def _arranged(self, candidates: Candidates) -> NDArray[np.int64]:
        return self._policy.arrange(candidates, self._table.batch_size, self._rng)

    def _candidates(self, indices: NDArray[np.int64], records: NDArray[Any]) -> Candidates:
        usage_count = records["usage_count"].astype(np.int64)
        group = None if self._storage.group_labels is None else records["group"].astype(np.int64)
        loss = self._storage.estimates(records)
        limit, evidence = self._context.outlook.limit, None
        if limit is not None:
            evidence = self._storage.evidence.take(indices)
        margin = None if limit is None or evidence is None else limit.margins(evidence)
        candidates = Candidates(indices, loss, records["last"], records["mean"], usage_count, group, margin)
        for field in candidates:
            if field is not None:
                # Some are views of the chunk's records, which a policy must not change.
                field.flags.writeable = False
        return candidates


def spread_evenly(
    order: NDArray[np.int64], marked: NDArray[np.bool_], batch_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Spread marked samples evenly over the batches, in random order; the others keep their order.

    Args:
        order: int64[M], samples in drawing order; consecutive runs of B make the batches.
        marked: bool[M], which of them to spread.
        batch_size: B.
        rng: Shuffles the marked samples.

    >>> marked = np.array([True, True, True, False, False, False])
    >>> spread_evenly(np.arange(6), marked, 2, np.random.default_rng(0))[1::2]
    array([3, 4, 5])
    """
    num_batches, count = len(order) // batch_size, int(marked.sum())
    if num_batches < 2 or not count:
        return order
    turn = np.arange(count)
    # In random order, or the batches of the few marked ones would come one after another.
    batches = rng.permutation(num_batches)
    is_dealt = np.zeros(len(order), bool)
    is_dealt[batches[turn % num_batches] * batch_size + turn // num_batches] = True
    spread = np.empty_like(order)
    spread[is_dealt], spread[~is_dealt] = rng.permutation(order[marked]), order[~marked]
    return spread
