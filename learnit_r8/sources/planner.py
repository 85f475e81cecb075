"""The planner: makes the next chunk of a pass from the next samples, which the policy selects and arranges.

A sweep is one run through the data in random order; the outlook is what a policy knows of the whole table, from a
random part of it that is read once a pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies.base import Candidates, Context, Outlook, Policy
from ..policies.registry import SHUFFLE
from ..table.exclusions import holds
from ..table.label_noise import MarginLimit
from ..table.labels.suspicion import Humps, Suspicion
from ..table.losses import EXACT
from ..table.radix import keys_of, order_of
from ..table.storage import SampleStorage
from ..table.table import SampleTable
from .chunk import Chunk, Planned
from .lengths import Buckets
from .permutation import Permutation

Weighted = tuple[NDArray[np.int64], NDArray[np.float32] | None]
"""int64[M] samples, and float32[M] factors for their losses, or None."""


class Sweep:
    """Hands out all samples once, in parts; after loading a refitted state, the samples of its stored order.

    Where batches are of similar lengths, it hands out the numbers of these batches in place of samples.

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


USUAL_BATCHES = 0.9
"""Share of batches, those of the lowest estimates, in which a few samples of huge losses are not: a batch without them
is expected to have a usual loss, not one far below the mean."""


class Draft:
    """Makes chunks of samples that the policy has selected and arranged.

    Args:
        table: The sample table.
        policy: Selects and arranges samples.
        context: The policy's context.
        rng: The policy's generator.

    Attributes:
        typical: Mean estimate of the samples last passed to `select`, in usual batches, for `LossLearner.with_trend`.
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
        records = self._storage.records.take(indices)
        self.typical = self._mean_in_usual_batches(records)
        candidates = self._candidates(indices, records)
        self.pool = candidates.loss
        keep, weights = self._policy.select(candidates, self._context, self._rng)
        return indices[keep], None if weights is None else weights[keep]

    def first(self, indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The ``count`` of some samples that the policy draws first."""
        candidates = self._candidates(indices, self._storage.records.take(indices))
        return indices[self._arranged(candidates, self._storage.batch_size)[:count]]

    def chunk(self, samples: Weighted, *, sweep: int, fill: bool, watch_rng: np.random.Generator) -> Chunk:
        """A chunk of the batches that the policy arranges from some samples.

        Args:
            samples: The samples and their weights.
            sweep: Number of their sweep.
            fill: Whether to fill up the last batch.
            watch_rng: Shuffles watched samples, to spread them over the batches.
        """
        batch_size, indices = self._storage.batch_size, samples[0]
        records = self._storage.records.take(indices)
        candidates = self._candidates(indices, records)
        order = self._arranged(candidates, batch_size)
        watched = self._storage.exclusions.watched
        if len(watched):
            order = spread_evenly(order, holds(watched, indices[order]), batch_size, watch_rng)
        missing = -len(indices) % batch_size
        sizes = np.full(-(-len(indices) // batch_size), batch_size)
        sizes[-1] -= missing
        return self.chunk_of(samples, records, candidates.loss, order, sizes, sweep, fill=missing if fill else 0)

    def chunk_of_batches(
        self, batches: list[NDArray[np.int64]], places: list[int], size_in: Callable[[int], int], *, sweep: int
    ) -> Chunk:
        """A chunk of batches of different sizes; the policy arranges the samples among those of one place.

        Args:
            batches: int64[B] each, in drawing order.
            places: For each, a number; batches of one number may exchange samples.
            size_in: Returns the samples of a full batch of a place.
            sweep: Number of their sweep.
        """
        sizes, numbers = np.array([len(each) for each in batches]), np.array(places)
        indices = np.concatenate(batches)
        records = self._storage.records.take(indices)
        of, order = np.repeat(numbers, sizes), np.arange(len(indices))
        for place in dict.fromkeys(places):
            own = np.flatnonzero(of == place)
            size = size_in(place)
            arranged = self._arranged(self._candidates(indices[own], records[own]), size)
            if (sizes[numbers == place][:-1] != size).any():
                # Some batches have lost samples, so that an order of full ones fits them no better than any.
                arranged = np.arange(len(own))
            order[own] = own[arranged]
        return self.chunk_of((indices, None), records, self._storage.estimates(records), order, sizes, sweep)

    def chunk_of(
        self, samples: Weighted, records: NDArray[Any], loss: NDArray[np.float32], order: NDArray[np.int64],
        sizes: NDArray[np.int64], sweep: int, *, fill: int = 0,
    ) -> Chunk:  # fmt: skip
        """The chunk of some samples, their records and estimates, whose batches are known."""
        indices, weights = samples
        records, weights = records[order], None if weights is None else weights[order]
        return Chunk(
            indices.take(order), self._table, sizes=sizes, expected=self._learner.expected(records, sizes, weights),
            typical=self._mean_in_usual_batches(records) if math.isnan(self.typical) else self.typical,
            pass_number=self._context.pass_number, sweep=sweep, fill=fill, weights=weights,
            planned=Planned(loss if self.pool is None else self.pool, loss, order),
        )  # fmt: skip

    def _mean_in_usual_batches(self, records: NDArray[Any]) -> float:
        """The mean estimate, without the batches of a few samples that alone lift it above nearly all batches."""
        [mean] = self._learner.expected(records, np.array([len(records)]))
        count = max(1, len(records) // self._storage.batch_size)
        sizes = np.diff(np.linspace(0, len(records), count + 1).astype(int))
        known = sorted(each for each in self._learner.expected(records, sizes) if each == each)
        usual = known[: math.ceil(USUAL_BATCHES * len(known))]
        return sum(usual) / len(usual) if usual and mean > usual[-1] else mean

    def _arranged(self, candidates: Candidates, batch_size: int) -> NDArray[np.int64]:
        if len(self._storage.group_sizes) >= self._storage.batch_size:
            # A batch cannot take a sample of each.
            candidates = candidates._replace(group=None)
        return self._policy.arrange(candidates, batch_size, self._rng)

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


MOST_LOOKED_AT = 2**14
"""Most samples that are read: enough to know a share to 0.4 %, in a third of a millisecond for a table of any size."""

PRECISION = 0.7
"""Least share of wrong labels, as estimated, in a list of samples to leave out."""


def look_at(storage: SampleStorage, rng: np.random.Generator, *, weighed: Outlook | None = None) -> Outlook:
    """Make the outlook from a random part of the table, which must have learned all reports.

    Args:
        storage: The storage of the table.
        rng: Chooses the part if the table has more than 16,384 samples.
        weighed: Of a policy that weighs, the outlook of the pass before; None of others.
    """
    kind = storage.part_size
    if kind != EXACT:
        return Outlook()
    if storage.num_samples <= MOST_LOOKED_AT:
        chosen = np.arange(storage.num_samples)
    else:
        chosen = rng.integers(0, storage.num_samples, MOST_LOOKED_AT)
        chosen = chosen[order_of(chosen)]
    records, evidence = storage.records.take(chosen), storage.evidence.take(chosen)
    uses, mean = records["usage_count"], records["mean"]
    limit, judged = None, uses > 0
    if evidence is not None:
        by_group = storage.group_labels is not None
        limit = MarginLimit.of(records, evidence, precision=PRECISION, by_group=by_group, is_weighed=storage.is_weighed)
    # While all others get better, those that margins left out or weighed less keep high losses: two humps that say
    # nothing. Nobody is left out by the margins of a policy that weighs.
    if weighed is not None:
        judged &= weighed.limit is None
    elif limit is not None:
        judged &= limit.margins(evidence) < np.inf
    suspicion = Suspicion.of(mean[judged], uses[judged], storage.untrained_loss)
    fine = uses > 0
    if suspicion is not None:
        flagged = suspicion.flags(mean, uses)
        # Rare classes are learnt later than others, and wrong labels once they are memorised: most are by then better
        # than untrained.
        last = records["last"][flagged]
        if not suspicion.is_surprising or 2 * np.count_nonzero(last < storage.untrained_loss) > len(last):
            suspicion = None
        else:
            limit = None
            fine &= ~flagged
    if not fine.any():
        return Outlook(True, float(uses.mean()), 1.0, math.nan, suspicion, limit)
    hard_share = float((mean[fine] > storage.untrained_loss).mean())
    last = records["last"][fine]
    middle = last[order_of(keys_of(last))[(len(last) - 1) // 2 : len(last) // 2 + 1]]
    return Outlook(True, float(uses.mean()), hard_share, float(middle.mean()), suspicion, limit)


def to_plain(outlook: Outlook) -> list[Any]:
    """Convert to plain values, which `from_plain` reads back."""
    suspicion, limit = outlook.suspicion, outlook.limit
    return [
        *outlook[:-2],
        None if suspicion is None else [suspicion.untrained_loss, *suspicion.humps],
        None if limit is None else [*limit],
    ]


def from_plain(values: Sequence[Any]) -> Outlook:
    """Convert the values of `to_plain` back to an outlook."""
    is_exact, num_uses, hard_share, middle_loss, suspicion, limit = values
    known = None if suspicion is None else Suspicion(suspicion[0], Humps(*suspicion[1:]))
    if limit is not None:
        if len(limit) != 4:
            raise ValueError(f"the limit in plan.context must be a list of 4, got {limit!r}.")
        least, field, fresh, (margins, chances) = limit
        limit = MarginLimit(least, field, fresh, (tuple(margins), tuple(chances)))
    return Outlook(is_exact, num_uses, hard_share, middle_loss, known, limit)


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
    # Where a short last batch is marked, too, there is nothing left to spread among.
    if num_batches < 2 or not 0 < count <= num_batches * batch_size:
        return order
    turn = np.arange(count)
    # In random order, or the batches of the few marked ones would come one after another.
    batches = rng.permutation(num_batches)
    is_dealt = np.zeros(len(order), bool)
    is_dealt[batches[turn % num_batches] * batch_size + turn // num_batches] = True
    spread = np.empty_like(order)
    spread[is_dealt], spread[~is_dealt] = rng.permutation(order[marked]), order[~marked]
    return spread


CHUNK_SAMPLES = 3 * 2**13
"""Least number of samples in a chunk, if there are as many; its quartiles are then within 0.3 % of the data's ranks."""

CHUNK_BATCHES = 8
MOST_SAMPLES = 2**16
"""A chunk has at least `CHUNK_BATCHES` batches unless they have more samples than this, which limits memory."""

PLANNING_BYTES = 160
"""More bytes than planning takes for each sample of a chunk."""

POOL_SAMPLES, POOL_BATCHES = 2**12, 8
"""A batch outside the pass is chosen from at least this many random samples, and at least this many batches of them."""

PASS_KEY, _OUTSIDE, _POLICY, _OUTSIDE_POLICY, _OUTLOOK, NEW_KEY, _WATCHED = range(7)
"""Purposes of random keys. Keys of one purpose must have one length, as trailing zeros of a key have no effect."""


class Planner:
    """Makes the chunks of a run, one after another.

    Args:
        table: The sample table.
        policy: Selects and arranges samples from the second pass on; the first pass takes all samples, shuffled.
        seed: >= 0; together with the numbers of pass and chunk, the key of all randomness.
        last_batch: "short", "drop" or "fill"; see `PlannedBatches`.
        before_sweep: Called before a sweep, whose chunks may share samples with earlier ones.
        buckets: The samples by their length, where batches are of similar ones; else None.

    Attributes:
        seed: As given, or that of a loaded state.
        num_sweeps: Number of the current sweep, counted over the run; -1 before the first.
    """

    def __init__(
        self, table: SampleTable, *, policy: Policy, seed: int, last_batch: str, before_sweep: Callable[[], None],
        buckets: Buckets | None = None,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.num_sweeps = -1
        self._table, self._storage = table, table.storage
        self._policy = policy
        self._last_batch = last_batch
        self._before_sweep = before_sweep
        self._buckets = buckets
        size, batch = table.num_samples, table.batch_size
        self._full = min(batch, size)
        batches = -(-size // batch)
        wanted = min(max(CHUNK_SAMPLES, CHUNK_BATCHES * batch), max(MOST_SAMPLES, batch))
        self._chunk_size = -(-batches // max(1, round(size / wanted))) * batch
        # Freed at once: glibc hands free memory back to the system beyond twice the largest block freed before, so that
        # planning would have to find a part of its memory again for each chunk, up to a tenth of all time.
        np.empty(min(self._chunk_size, MOST_SAMPLES) * PLANNING_BYTES, np.uint8)
        self._num_outside = 0
        self._sweep = self._new_sweep()

    def start_sweep(self) -> None:
        """Start another run through the data, whose chunks may share samples with earlier ones."""
        self._before_sweep()
        self.num_sweeps += 1
        self._sweep = self._new_sweep()

    def _sweep_key(self) -> list[int]:
        return [self.seed, PASS_KEY, max(0, self.num_sweeps)]

    def _new_sweep(self) -> Sweep:
        buckets = self._buckets
        if buckets is None:
            return Sweep(self._storage.num_samples, self._chunk_size, self._sweep_key())
        return Sweep(buckets.num_batches, buckets.batches_in(self._chunk_size), self._sweep_key())

    def context(self, number: int, progress: float, before: Outlook = Outlook()) -> Context:
        """The policy's context for a pass; the table must have learned all reports.

        Args:
            number: Number of the pass, 0-based.
            progress: Finished share of the budget.
            before: The outlook of the pass before.
        """
        outlook = Outlook()
        if number and self._policy.selects:
            outlook = look_at(
                self._storage, self._generator(_OUTLOOK, number),
                weighed=before if self._policy.weighs else None,
            )  # fmt: skip
        table = self._table
        return Context(progress, number, table.batch_size, table.untrained_loss, outlook, table.storage.group_sizes)

    def look_ahead(self, context: Context, num_left: int) -> tuple[Chunk, Planner]:
        """Plan the next chunk of the pass; this planner stays where it is until `follow`.

        Args:
            context: The context of the pass.
            num_left: Batches left in the pass, >= 1; the chunk may hold more.

        Returns:
            The chunk, and the planner that has gone ahead.

        Raises:
            RuntimeError: the policy selects no sample.
        """
        ahead = copy.copy(self)
        ahead._sweep = copy.copy(self._sweep)
        return ahead._next_chunk(context, num_left), ahead

    def follow(self, ahead: Planner) -> None:
        """Go where another planner is."""
        self.num_sweeps, self._sweep = ahead.num_sweeps, ahead._sweep

    def _next_chunk(self, context: Context, num_left: int) -> Chunk:
        policy = SHUFFLE if context.pass_number == 0 else self._policy
        if self._buckets is not None:
            return self._next_chunk_of_lengths(self._buckets, policy, context)
        if policy.selects or len(self._storage.exclusions.quarantined):
            # Samples in the batches left in the pass, of which the last is as short as without a selection.
            missing = -self._storage.num_samples % self._storage.batch_size if self._last_batch == "short" else 0
            return self._next_selected_chunk(policy, context, num_left * self._storage.batch_size - missing)
        if self._sweep.is_done:
            # Another policy, before the resume, has selected all there was before the pass ended.
            self.start_sweep()
        draft, watch_rng = self._draft(policy, context, _POLICY, self.num_sweeps, self._sweep.rank), self._watch_rng()
        indices = self._sweep.next_part()
        if self._last_batch == "drop":
            indices = indices[: len(indices) // self._full * self._full]
        return draft.chunk((indices, None), sweep=self.num_sweeps, fill=self._last_batch == "fill", watch_rng=watch_rng)

    def _next_chunk_of_lengths(self, buckets: Buckets, policy: Policy, context: Context) -> Chunk:
        """Plan batches of samples of similar length; those in quarantine are left out of them."""
        if self._sweep.is_done:
            self.start_sweep()
        draft = self._draft(policy, context, _POLICY, self.num_sweeps, self._sweep.rank)
        batches, places = buckets.batches(self._sweep.next_part(), self._sweep_key())
        if len(self._storage.exclusions.quarantined):
            gone = self._storage.exclusions.quarantined
            batches = [each[~self._storage.exclusions.holds(each)] for each in batches]
            # A pass has its number of batches, so one that has lost all its samples gets another.
            batches = [
                each if len(each) else buckets.other(place, gone) for each, place in zip(batches, places, strict=True)
            ]
        return draft.chunk_of_batches(batches, places, buckets.size_in, sweep=self.num_sweeps)

    def _watch_rng(self) -> np.random.Generator:
        return self._generator(_WATCHED, self.num_sweeps, self._sweep.rank)

    def _next_selected_chunk(self, policy: Policy, context: Context, room: int) -> Chunk:
        """Plan with the samples that the policy selects; if the sweep has no batch left, sweep over the data again."""
        swept_again = False
        self._sweep.drop(self._storage.exclusions.holds(self._sweep.left_over[0]))
        samples = self._sweep.left_over
        while True:
            if self._sweep.is_done and swept_again:
                # The policy selects less than a batch of the whole data: a short batch is better than none.
                samples = self._sweep.left_over
                if not len(samples[0]):
                    raise RuntimeError(
                        f"policy must keep some of {len(self._table)} samples, got none from {policy!r}."
                    )
                break
            left_over = None
            if self._sweep.is_done:
                swept_again = True
                # Without a selection these are just the samples that did not fill a batch: they come first now.
                left_over = None if policy.selects else self._sweep.left_over[0]
                self.start_sweep()
            draft = self._draft(policy, context, _POLICY, self.num_sweeps, self._sweep.rank)
            part = self._sweep.next_part()
            if len(self._storage.exclusions.quarantined):
                part = part[~self._storage.exclusions.holds(part)]
            kept = self._sweep.add(*(draft.select(part) if policy.selects else (part, None)))
            if left_over is not None:
                part = kept[0][~holds(left_over[order_of(left_over)], kept[0])]
                uses = self._storage.records.take(part)["usage_count"]
                # Least used first.
                kept = np.concatenate([left_over, part[order_of(uses)]]), None
            # The end of the pass may be a short batch; before it, samples that fill no batch wait for the next part.
            whole = room if len(kept[0]) >= room else len(kept[0]) // self._full * self._full
            samples = self._sweep.leave(whole, kept)
            if whole:
                break
        return draft.chunk(samples, sweep=self.num_sweeps, fill=self._last_batch == "fill", watch_rng=self._watch_rng())

    def chunk_outside(self, policy: Policy, context: Context) -> Chunk | None:
        """Make a chunk of one batch from a random part of the data; None if the policy selects too few samples."""
        self._num_outside += 1
        storage, learner = self._storage, self._table.learner
        size = min(max(POOL_SAMPLES, POOL_BATCHES * storage.batch_size), storage.num_samples)
        part = Permutation(storage.num_samples, [self.seed, _OUTSIDE, self._num_outside])(0, size)
        draft = self._draft(policy, context._replace(pass_number=-1), _OUTSIDE_POLICY, self._num_outside)
        kept, _ = draft.select(part[~storage.exclusions.holds(part)])
        if len(kept) < self._full:
            return None
        first = draft.first(kept, self._full)
        first = first if self._buckets is None else self._buckets.fitting(first)
        records, count = storage.records.take(first), len(first)
        loss = storage.estimates(records)
        chunk = draft.chunk_of((first, None), records, loss, np.arange(count), np.array([count]), -1)
        [expected], typical = chunk.expected, chunk.typical
        if expected < typical:
            kept_share = learner.worth(storage.records.take(part))
            chunk.expected = [typical - kept_share * (typical - expected)]
        return chunk

    def _draft(self, policy: Policy, context: Context, *key: int) -> Draft:
        return Draft(self._table, policy, context, self._generator(*key))

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.seed, *key])))

    def state_dict(self) -> dict[str, Any]:
        """The position; the seed is saved with the run."""
        return {"num_sweeps": self.num_sweeps, "sweep": self._sweep.state_dict(), "num_outside": self._num_outside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; ``seed`` must be set first."""
        self.num_sweeps = state["num_sweeps"]
        self._sweep = self._new_sweep()
        self._sweep.load_state_dict(state["sweep"])
        self._num_outside = state["num_outside"]
