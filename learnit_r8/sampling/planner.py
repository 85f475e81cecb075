"""The planner: the next chunk of a pass, made of the samples that come next as the policy selects and arranges them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies.base import Context, Outlook, Policy
from ..policies.radix import holds, order_of
from ..policies.registry import SHUFFLE
from ..table.table import SampleTable
from .chunk import Chunk
from .draft import Draft
from .outlook import look_at
from .sweep import Sweep, Weighted

CHUNK_SAMPLES = 3 * 2**13
"""Least samples in a chunk, where there are as many: its quartiles are within 0.3 % of rank those of the data."""

CHUNK_BATCHES = 8
MOST_SAMPLES = 2**16
"""A chunk holds at least 8 batches, unless that takes more samples than this: memory stays small for huge batches."""

POOL_SAMPLES, POOL_BATCHES = 2**12, 8
"""A batch outside the pass is taken from at least so many random samples, and from so many batches of them."""

PASS_KEY, _OUTSIDE, _POLICY, _OUTSIDE_POLICY, _OUTLOOK, NEW_KEY, _WATCHED = range(7)
"""What a random key is for. Keys of one kind must be of one length: zeros at the end of a key do not count."""


class Planner:
    """Makes the chunks of a run, one after the other.

    Args:
        table: What is known of the samples.
        policy: Which samples come next, from the second pass on; the first takes everything, shuffled.
        seed: >= 0; with the numbers of the pass and the chunk the key of all randomness.
        last_batch: "short", "drop" or "fill"; see `Plan`.
        before_sweep: Called before chunks are made that may share samples with those before.

    Attributes:
        seed: As given; a loaded run has that of the saved one.
        num_sweeps: Number of the sweep that chunks are made of, counted over the run; -1 before the first.
    """

    def __init__(
        self, table: SampleTable, *, policy: Policy, seed: int, last_batch: str, before_sweep: Callable[[], None]
    ) -> None:
        self.seed = seed
        self.num_sweeps = -1
        self._table = table
        self._policy = policy
        self._last_batch = last_batch
        self._before_sweep = before_sweep
        size, batch = table.num_samples, table.batch_size
        self._full = min(batch, size)
        batches = -(-size // batch)
        wanted = min(max(CHUNK_SAMPLES, CHUNK_BATCHES * batch), max(MOST_SAMPLES, batch))
        self._chunk_size = -(-batches // max(1, round(size / wanted))) * batch
        self._num_outside = 0
        self._sweep = self._new_sweep()

    def start_sweep(self) -> None:
        """Begin another run through the data; the chunks before may share samples with those to come."""
        self._before_sweep()
        self.num_sweeps += 1
        self._sweep = self._new_sweep()

    def _new_sweep(self) -> Sweep:
        return Sweep(self._table.num_samples, self._chunk_size, [self.seed, PASS_KEY, max(0, self.num_sweeps)])

    def context(self, number: int, progress: float) -> Context:
        """What the policy is told in a pass besides the samples; what was reported must have been learned.

        Args:
            number: Of the pass, 0 for the cataloguing one.
            progress: Finished share of the budget.
        """
        outlook = Outlook()
        if number and self._policy.selects:
            outlook = look_at(self._table, self._generator(_OUTLOOK, number))
        table = self._table
        return Context(progress, number, table.batch_size, table.untrained_loss, outlook, table.group_sizes)

    def next_chunk(self, context: Context, num_left: int) -> Chunk:
        """The next chunk of the pass.

        Args:
            context: Of the pass.
            num_left: Batches that the pass has left, >= 1; the chunk may hold more.

        Raises:
            RuntimeError: the policy keeps no sample.
        """
        policy = SHUFFLE if context.pass_number == 0 else self._policy
        if policy.selects or len(self._table.quarantined):
            return self._next_selected_chunk(policy, context, self._room(num_left))
        draft, watch_rng = self._draft(policy, context, _POLICY, self.num_sweeps, self._sweep.rank), self._watch_rng()
        indices = self._sweep.next_part()
        if self._last_batch == "drop":
            indices = indices[: len(indices) // self._full * self._full]
        return draft.chunk((indices, None), sweep=self.num_sweeps, fill=self._last_batch == "fill", watch_rng=watch_rng)

    def _watch_rng(self) -> np.random.Generator | None:
        if not len(self._table.exclusions.watched):
            return None
        return self._generator(_WATCHED, self.num_sweeps, self._sweep.rank)

    def _next_selected_chunk(self, policy: Policy, context: Context, room: int) -> Chunk:
        """Plan from what the policy keeps, sweeping over the data again where the sweep has no batch left."""
        swept_again = False
        self._sweep.drop(self._table.exclusions.holds(self._sweep.left_over[0]))
        samples = self._sweep.left_over
        while True:
            if self._sweep.is_done and swept_again:
                # The policy leaves less than a batch of the whole data: better a short one than none.
                samples = self._sweep.left_over
                if not len(samples[0]):
                    raise RuntimeError(
                        f"policy must keep some of {len(self._table)} samples, got none from {policy!r}."
                    )
                break
            left_over = None
            if self._sweep.is_done:
                swept_again = True
                # Without a selection they are only too few for a batch, and their turn comes now.
                left_over = None if policy.selects else self._sweep.left_over[0]
                self.start_sweep()
            draft = self._draft(policy, context, _POLICY, self.num_sweeps, self._sweep.rank)
            kept = self._sweep.add(*self._select(draft, policy, self._sweep.next_part()))
            if left_over is not None:
                kept = self._filled_up(left_over, kept[0]), None
            # What fills the pass may end in its short batch; else what makes no whole batch waits for the next part.
            whole = room if len(kept[0]) >= room else len(kept[0]) // self._full * self._full
            samples = self._sweep.leave(whole, kept)
            if whole:
                break
        return draft.chunk(samples, sweep=self.num_sweeps, fill=self._last_batch == "fill", watch_rng=self._watch_rng())

    def _select(self, draft: Draft, policy: Policy, part: NDArray[np.int64]) -> Weighted:
        """The samples of a part of the data that the policy keeps, without those in quarantine."""
        if len(self._table.quarantined):
            part = part[~self._table.exclusions.holds(part)]
        return draft.select(part) if policy.selects else (part, None)

    def _filled_up(self, left_over: NDArray[np.int64], part: NDArray[np.int64]) -> NDArray[np.int64]:
        """What was left over by a sweep, and behind it the samples of the next, least used first."""
        part = part[~holds(left_over[order_of(left_over)], part)]
        if not len(part):
            return left_over
        uses = self._table.records.take(part)["usage_count"]
        return np.concatenate([left_over, part[order_of(uses)]])

    def _room(self, num_left: int) -> int:
        """Samples that the batches left in the pass hold: the last one is as short as without a selection."""
        batch = self._table.batch_size
        missing = -self._table.num_samples % batch if self._last_batch == "short" else 0
        return num_left * batch - missing

    def chunk_outside(self, policy: Policy, context: Context) -> Chunk | None:
        """A chunk of one batch from a random part of the data; None where the policy keeps too few samples."""
        self._num_outside += 1
        size = max(POOL_SAMPLES, POOL_BATCHES * self._table.batch_size)
        pool = Sweep(self._table.num_samples, size, [self.seed, _OUTSIDE, self._num_outside])
        draft = self._draft(policy, context._replace(pass_number=-1), _OUTSIDE_POLICY, self._num_outside)
        part = pool.next_part()
        kept, _ = draft.select(part[~self._table.exclusions.holds(part)])
        if len(kept) < self._full:
            return None
        first = draft.first(kept, self._full)
        chunk = self._draft(SHUFFLE, context).chunk((first, None), sweep=-1, fill=False)
        chunk.typical = draft.typical
        if chunk.expected[0] < chunk.typical:
            kept_share = self._table.worth(self._table.records.take(part))
            chunk.expected[0] = chunk.typical - kept_share * (chunk.typical - chunk.expected[0])
        return chunk

    def chunk_of(self, indices: NDArray[np.int64], context: Context) -> Chunk:
        """A chunk of one batch of these samples, int64[M] and distinct, outside any pass."""
        return self._draft(SHUFFLE, context).chunk((indices, None), sweep=-1, fill=False)

    def _draft(self, policy: Policy, context: Context, *key: int) -> Draft:
        rng = self._generator(*key) if policy.is_random else _spare_generator()
        return Draft(self._table, policy, context, rng)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.seed, *key])))

    def state_dict(self) -> dict[str, Any]:
        """How far it is; the seed is saved with the run."""
        return {"num_sweeps": self.num_sweeps, "sweep": self._sweep.state_dict(), "num_outside": self._num_outside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; ``seed`` must be set first."""
        self.num_sweeps = state["num_sweeps"]
        self._sweep = self._new_sweep()
        self._sweep.load_state_dict(state["sweep"])
        self._num_outside = state["num_outside"]


@functools.cache
def _spare_generator() -> np.random.Generator:
    """For policies that use none; made late, since numpy loads `numpy.random` when it is first asked for."""
    return np.random.default_rng(0)
