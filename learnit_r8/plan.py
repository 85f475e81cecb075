"""The plan of a run: passes over the data, cut into chunks that are planned when they are reached.

An epoch is one pass over the data in a random order that is never made whole. A chunk of about 16 thousand samples
is taken from it, its records gathered once, arranged into batches, and its reports written to the table at once
when its last batch is settled. The samples of a pass are distinct, so this equals learning from every report as it
comes (``tests/test_plan.py``), and drawing or reporting a batch costs no numpy arithmetic. Cost and alternatives:
``benchmarks/overhead.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunk import OPEN, OUT_AGAIN, REPORTED, WAITING, Batch, Chunk
from .order import Permutation
from .policies import SHUFFLE, Candidates, Context, Policy
from .table import SampleTable

CHUNK_SAMPLES = 3 * 2**13
"""Least samples in a chunk, where there are as many: its quartiles are within 0.4 % of rank those of the data."""

CHUNK_BATCHES = 8
MOST_SAMPLES = 2**16
"""A chunk holds at least 32 batches, unless that takes more samples than this: memory stays small for huge batches."""

LAST_BATCH = ("short", "drop", "fill")

_PASS, _OUTSIDE, _POLICY, _OUTSIDE_POLICY = range(4)
"""What a random key is for. Keys of one kind must be of one length: zeros at the end of a key do not count."""


class Plan:
    """Draws the batches of a run, and hands what is reported of them to the table.

    Args:
        table: What is known of the samples.
        policy: Which samples come next, from the second pass on; the first takes everything, shuffled.
        seed: >= 0; with the numbers of the pass and the chunk the key of all randomness.
        last_batch: What becomes of the N mod B samples at the end of a pass: a "short" batch, "drop", or "fill" up
            with samples from earlier in the pass, which are trained on again and learned from once.

    Raises:
        ValueError: an unknown ``last_batch``, or "drop" with fewer samples than a batch.

    Attributes:
        steps_per_pass: Batches in a pass.
        displaced: Batches that were left undrawn when their pass ended.
        abandoned: Batches that were drawn and given up.
    """

    def __init__(self, table: SampleTable, *, policy: Policy, seed: int = 0, last_batch: str = "short") -> None:
        size, batch = table.num_samples, table.batch_size
        if last_batch not in LAST_BATCH:
            raise ValueError(f"last_batch must be one of {LAST_BATCH}, got {last_batch!r}.")
        if last_batch == "drop" and size < batch:
            raise ValueError(f"last_batch='drop' needs num_samples >= batch_size={batch}, got {size}.")
        self.table = table
        self.policy = policy
        self.last_batch = last_batch
        self.steps_per_pass = size // batch if last_batch == "drop" else -(-size // batch)
        self.displaced = 0
        self.abandoned = 0
        self.seed = seed
        self._full = min(batch, size)
        batches = -(-size // batch)
        wanted = min(max(CHUNK_SAMPLES, CHUNK_BATCHES * batch), max(MOST_SAMPLES, batch))
        self._chunk_size = -(-batches // max(1, round(size / wanted))) * batch
        self._no_chunk = Chunk(_NOBODY, table, sizes=_NOBODY, expected=[], pass_number=-1, sweep=-1)
        self._forget()
        table.sync = self.flush
        table.on_offsets = self._expect_offsets

    def _forget(self) -> None:
        """Begin before the first pass."""
        self._context = Context(0.0, -1, self.table.batch_size, float("nan"))
        self._chunk, self._limit = self._no_chunk, 0
        self._open: list[Chunk] = []
        self._returned: deque[Batch] = deque()
        self._waiting: deque[Batch] = deque()
        self._drawn_before = 0
        self._num_outside = 0
        self._sweep = -1
        self._rank = self.table.num_samples
        self._carried = _NOBODY
        self._carried_weights: NDArray[np.float32] | None = None

    @property
    def has_returned(self) -> bool:
        """Whether batches that were out when the state was saved are to be drawn first."""
        return bool(self._returned)

    @property
    def pass_number(self) -> int:
        """The pass being drawn, 0 for the cataloguing one; -1 before it."""
        return self._context.pass_number

    def start_pass(self, number: int, progress: float) -> None:
        """Leave the pass before, undrawn batches and all, and begin another.

        Batches that are out may still be reported. Everything reported so far counts for the new pass.

        Args:
            number: 0 for the cataloguing pass, which takes every sample in random order.
            progress: Finished share of the budget, for the policy.
        """
        self._leave_chunk()
        if self.pass_number >= 0:
            self.displaced += self.steps_per_pass - self._drawn_before
        for batch in self._waiting:
            self.settle(batch)
        self._waiting.clear()
        self._context = Context(progress, number, self.table.batch_size, self.table.untrained_loss)
        self._drawn_before = 0
        self._start_sweep()

    def _start_sweep(self) -> None:
        """Begin another run through the data; the chunks before may share samples with those to come."""
        self.flush()
        self._forget_records()
        self._sweep += 1
        self._rank = 0
        self._carried, self._carried_weights = _NOBODY, None
        self._order = self._permutation()

    def _permutation(self) -> Permutation:
        return Permutation(self.table.num_samples, [self.seed, _PASS, max(0, self._sweep)])

    def _forget_records(self) -> None:
        for chunk in self._open:
            chunk.forget_records()

    def draw(self) -> Batch:
        """The next batch of the pass.

        Raises:
            RuntimeError: all batches of the pass were drawn, or the policy leaves too few samples for one.
        """
        chunk = self._chunk
        slot = chunk.drawn
        if slot == self._limit or self._returned:
            return self._draw_elsewhere()
        chunk.drawn = slot + 1
        # The constructor of a named tuple is a Python function; this is not.
        return _new_tuple(Batch, (chunk, slot, chunk.views[slot]))

    def _draw_elsewhere(self) -> Batch:
        """The next batch where it is not simply the next of the chunk."""
        if self._returned:
            return self._returned.popleft()
        if self.pass_number < 0:
            raise RuntimeError(f"draw() needs a pass, got pass_number={self.pass_number}; call start_pass() first.")
        self._leave_chunk()
        left = self.steps_per_pass - self._drawn_before
        if left:
            self._chunk = self._next_chunk()
            self._open.append(self._chunk)
            self._limit = min(left, len(self._chunk.states))
            return self.draw()
        if not self._waiting:
            raise RuntimeError(f"pass {self.pass_number} has {self.steps_per_pass} batches, and all were drawn.")
        batch = self._waiting.popleft()
        batch.chunk.states[batch.slot] = OUT_AGAIN
        return batch

    def _leave_chunk(self) -> None:
        self._drawn_before += self._chunk.drawn
        self._chunk.drop_undrawn()
        self._chunk, self._limit = self._no_chunk, 0
        self._close_settled()

    def draw_outside(self, policy: Policy) -> Batch | None:
        """A batch from a random part of the data, outside the pass; None where the policy keeps too few samples."""
        if self._returned:
            return self._returned.popleft()
        self._close_settled()
        self.flush()
        self._num_outside += 1
        size = min(self._chunk_size, self.table.num_samples)
        indices = Permutation(self.table.num_samples, [self.seed, _OUTSIDE, self._num_outside])(0, size)
        rng = self._generator(policy, _OUTSIDE_POLICY, self._num_outside)
        candidates = self._candidates(indices, self.table.take(indices))
        keep, _ = policy.select(candidates, self._context, rng)
        if keep.sum() < self._full:
            return None
        chosen = candidates.subset(keep)
        first = policy.arrange(chosen, self.table.batch_size, rng)[: self._full]
        chunk = self._arranged(SHUFFLE, chosen.indices[first], None, rng, -1)
        chunk.drawn = 1
        self._open.append(chunk)
        return chunk.batch(0)

    def report(self, batch: Batch, means: float | NDArray[np.float64], trend: float) -> None:
        """Note the loss of a batch that is out; the table learns it before its samples are planned again.

        Args:
            batch: As drawn.
            means: Mean loss of the batch, or float64[P] of its consecutive parts.
            trend: What `SampleTable.observe` returned for it.
        """
        chunk, slot, _ = batch
        late = chunk.sweep != self._sweep
        if late:
            # It may share samples with reports still held back, and reports count in the order they come.
            self.flush()
            self._forget_records()
        chunk.reports[slot] = means
        chunk.trends[slot] = trend
        chunk.states[slot] = REPORTED
        if late:
            chunk.learn()

    def settle(self, batch: Batch) -> None:
        """Close a batch that is out without learning from it."""
        batch.chunk.settle(batch.slot)

    def abandon(self, batch: Batch) -> bool:
        """Take back a batch that will not be reported.

        Returns:
            Whether its step is free again, because it waits for the end of the pass to be drawn once more: a batch of
            the pass being drawn, the first time.
        """
        self.abandoned += 1
        chunk, slot, _ = batch
        if chunk.states[slot] == OPEN and chunk.pass_number == self.pass_number:
            chunk.states[slot] = WAITING
            self._waiting.append(batch)
            return True
        self.settle(batch)
        return False

    def forget_outside(self) -> None:
        """Do not draw batches from outside the pass again after a resume."""
        self._open = [chunk for chunk in self._open if chunk.pass_number >= 0]

    def _expect_offsets(self, trend: float) -> None:
        """Turn what was expected of planned batches into differences to the trend, as the table just did."""
        for chunk in self._open:
            chunk.expected = [(share - 1) * trend for share in chunk.expected]

    def flush(self) -> None:
        """Let the table learn everything reported so far. When this happens changes no batch."""
        for chunk in self._open:
            chunk.learn()

    def _close_settled(self) -> None:
        for chunk in [chunk for chunk in self._open if chunk.is_settled and chunk is not self._chunk]:
            chunk.learn()
            self._open.remove(chunk)

    def _next_chunk(self) -> Chunk:
        """Plan the next chunk of the pass."""
        policy = SHUFFLE if self.pass_number == 0 else self.policy
        if policy.selects:
            return self._next_selected_chunk(policy)
        members, rng = self._next_samples(policy)
        if self.last_batch == "drop":
            members = members[: len(members) // self._full * self._full]
        return self._arranged(policy, members, None, rng, self.pass_number)

    def _next_selected_chunk(self, policy: Policy) -> Chunk:
        """Plan from what the policy keeps, sweeping over the data again where the sweep has no batch left."""
        is_second_sweep = False
        while True:
            if self._rank == self.table.num_samples:
                members, weights = self._carried, self._carried_weights
                if is_second_sweep and len(members):
                    # The policy leaves less than a batch of the whole data: better a short one than none.
                    break
                if is_second_sweep:
                    raise RuntimeError(f"policy must keep some of the {self._rank} samples, got none from {policy!r}.")
                is_second_sweep = True
                self._start_sweep()
            fresh, rng = self._next_samples(policy)
            members, weights = self._selected(policy, fresh, rng)
            whole = len(members) // self._full * self._full
            self._carried, members = members[whole:], members[:whole]
            self._carried_weights = None if weights is None else weights[whole:]
            weights = None if weights is None else weights[:whole]
            if whole:
                break
        return self._arranged(policy, members, weights, rng, self.pass_number)

    def _next_samples(self, policy: Policy) -> tuple[NDArray[np.int64], np.random.Generator]:
        """The samples of the next chunk of the sweep in random order, and the chunk's generator."""
        start = self._rank
        self._rank = min(start + self._chunk_size, self.table.num_samples)
        return self._order(start, self._rank), self._generator(policy, _POLICY, self._sweep, start)

    def _selected(
        self, policy: Policy, indices: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """What a policy keeps of some samples, behind what was carried over from the chunk before."""
        keep, weights = policy.select(self._candidates(indices, self.table.take(indices)), self._context, rng)
        members = np.concatenate([self._carried, indices[keep]])
        if weights is None and self._carried_weights is None:
            return members, None
        carried = np.ones(len(self._carried), np.float32) if self._carried_weights is None else self._carried_weights
        fresh = np.ones(int(keep.sum()), np.float32) if weights is None else weights[keep]
        return members, np.concatenate([carried, fresh])

    def _arranged(
        self,
        policy: Policy,
        members: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
        rng: np.random.Generator,
        pass_number: int,
    ) -> Chunk:
        """The chunk a policy makes of some samples."""
        size = self.table.batch_size
        records = self.table.take(members)
        order = policy.arrange(self._candidates(members, records), size, rng)
        counts = np.full(-(-len(members) // size), size)
        counts[-1] -= -len(members) % size
        missing = -len(members) % size if self.last_batch == "fill" and pass_number >= 0 else 0
        records = self.table.reordered(records, order)
        return Chunk(
            members[order],
            self.table,
            sizes=counts,
            expected=self.table.expected(records, counts),
            pass_number=pass_number,
            sweep=self._sweep if pass_number >= 0 else -1,
            fill=missing,
            weights=None if weights is None else weights[order],
            records=records if pass_number >= 0 else None,
        )

    def _generator(self, policy: Policy, *key: int) -> np.random.Generator:
        """The policy's generator; any will do where it uses none."""
        if not policy.is_random:
            return _SPARE_GENERATOR
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.seed, *key])))

    def _candidates(self, indices: NDArray[np.int64], records: NDArray[Any]) -> Candidates:
        last, mean = records["last"], records["mean"]
        # Views of records that the chunk will write back: not for the policy to change.
        last.flags.writeable = mean.flags.writeable = False
        usage_count = records["usage_count"].astype(np.int64)
        group = None if self.table.group_labels is None else records["group"].astype(np.int64)
        return Candidates(indices, self.table.estimates(records), last, mean, usage_count, group)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to draw the very same batches; batches that are out are drawn again, first in line."""
        self.flush()
        place = {id(chunk): number for number, chunk in enumerate(self._open)}
        out = [batch for chunk in self._open for batch in chunk.batches_out()]
        return {
            "context": list(self._context),
            "sweep": self._sweep,
            "rank": self._rank,
            "drawn_before": self._drawn_before,
            "limit": self._limit,
            "num_outside": self._num_outside,
            "displaced": self.displaced,
            "abandoned": self.abandoned,
            "carried": self._carried.copy(),
            "carried_weights": None if self._carried_weights is None else self._carried_weights.copy(),
            "chunks": [chunk.state_dict() for chunk in self._open],
            "current": place.get(id(self._chunk), -1),
            "returned": [[place[id(batch.chunk)], batch.slot] for batch in out],
            "waiting": [[place[id(batch.chunk)], batch.slot] for batch in self._waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the table must be loaded first."""
        for chunk in self._open:
            chunk.give_up()
        self._forget()
        progress, number, batch_size, untrained_loss = state["context"]
        self._context = Context(progress, number, batch_size, untrained_loss)
        self._sweep, self._rank = state["sweep"], state["rank"]
        self._order = self._permutation()
        self._drawn_before, self._limit = state["drawn_before"], state["limit"]
        self._num_outside = state["num_outside"]
        self.displaced, self.abandoned = state["displaced"], state["abandoned"]
        self._carried = np.array(state["carried"], np.int64)
        weights = state["carried_weights"]
        self._carried_weights = None if weights is None else np.array(weights, np.float32)
        self._open = [Chunk.from_state(chunk, self.table) for chunk in state["chunks"]]
        if state["current"] >= 0:
            self._chunk = self._open[state["current"]]
        self._returned = deque(self._open[chunk].batch(slot) for chunk, slot in state["returned"])
        self._waiting = deque(self._open[chunk].batch(slot) for chunk, slot in state["waiting"])


_SPARE_GENERATOR = np.random.default_rng(0)
_new_tuple = tuple.__new__
_NOBODY = np.empty(0, np.int64)
