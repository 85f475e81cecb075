"""The plan of a run: passes over the data, cut into chunks that are planned when they are reached.

An epoch is one pass over the data in a random order that is never made whole. A chunk of about 25 thousand samples
is taken from it, its records gathered once, arranged into batches, and its reports written to the table at once
when its last batch is settled. The samples of a pass are distinct, so this equals learning from every report as it
comes (``tests/sampling/test_plan.py``), and drawing or reporting a batch costs no numpy arithmetic. Cost and
alternatives: ``benchmarks/overhead.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..policies.base import Context, Outlook, Policy
from ..table.records import PATIENCE
from ..table.table import SampleTable
from .chunk import OPEN, OUT_AGAIN, REPORTED, WAITING, Batch, Chunk
from .outlook import from_plain, to_plain
from .planner import Planner

LAST_BATCH = ("short", "drop", "fill")


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
        chunk: Where the next batches come from, and
        limit: how many of it are drawn before it is looked at again.
        returned: Batches that are drawn before any other.
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
        self._no_chunk = Chunk(_NOBODY, table, sizes=_NOBODY, expected=[], pass_number=-1, sweep=-1)
        self._reset()
        self._planner = Planner(
            table, policy=policy, seed=seed, last_batch=last_batch, before_sweep=self._let_others_share
        )
        table.hold_back(self)

    def _reset(self) -> None:
        """Begin before the first pass."""
        self._context = Context(0.0, -1, self.table.batch_size, float("nan"))
        self.chunk, self.limit = self._no_chunk, 0
        self._open: list[Chunk] = []
        self.returned: deque[Batch] = deque()
        self._waiting: deque[Batch] = deque()
        self._drawn_before = 0

    @property
    def seed(self) -> int:
        """Of all randomness; a loaded run has that of the saved one."""
        return self._planner.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._planner.seed = seed

    def samples_in(self, steps: int) -> int:
        """Samples handed out in so many steps of whole passes, steady ones and fillings counted like any other."""
        passes, rest = divmod(steps, self.steps_per_pass)
        size, batch = self.table.num_samples, self.table.batch_size
        each = size if self.last_batch == "short" else self.steps_per_pass * batch
        return passes * each + rest * batch

    @property
    def has_returned(self) -> bool:
        """Whether batches that were out when the state was saved are to be drawn first."""
        return bool(self.returned)

    @property
    def pass_number(self) -> int:
        """The pass being drawn, 0 for the cataloguing one; -1 before it."""
        return self._context.pass_number

    @property
    def outlook(self) -> Outlook:
        """What a policy that selects was told of all the samples when the pass began."""
        return self._context.outlook

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
        self._drawn_before = 0
        self._planner.start_sweep()
        self._context = self._planner.context(number, progress)

    def _let_others_share(self) -> None:
        """Let the table learn everything, and expect others to change the records of the open chunks' samples."""
        self.hand_over()
        for chunk in self._open:
            chunk.forget_records()

    def draw(self) -> Batch:
        """The next batch of the pass.

        Raises:
            RuntimeError: all batches of the pass were drawn, or the policy leaves too few samples for one.
        """
        chunk = self.chunk
        slot = chunk.drawn
        if slot == self.limit or self.returned:
            return self._draw_elsewhere()
        chunk.drawn = slot + 1
        # The constructor of a named tuple is a Python function; this is not.
        return _new_tuple(Batch, (chunk, slot, chunk.views[slot]))

    def _draw_elsewhere(self) -> Batch:
        """The next batch where it is not simply the next of the chunk."""
        if self.returned:
            return self._drawn_again(self.returned.popleft())
        if self.pass_number < 0:
            raise RuntimeError(f"draw() needs a pass, got pass_number={self.pass_number}; call start_pass() first.")
        if self.chunk.drawn == self._last_drawn:
            self._leave_chunk()
            left = self.steps_per_pass - self._drawn_before
            if left:
                self.chunk = self._planner.next_chunk(self._context, left)
                self._open.append(self.chunk)
        if self.chunk.drawn < self._last_drawn:
            # Where memory is late each step waits a little for it, so that none has to wait for all of it.
            can_go_on = self.table.records.settle_some(PATIENCE)
            self.limit = self._last_drawn if can_go_on else self.chunk.drawn + 1
            return self.draw()
        if not self._waiting:
            raise RuntimeError(f"pass {self.pass_number} has {self.steps_per_pass} batches, and all were drawn.")
        batch = self._waiting.popleft()
        batch.chunk.states[batch.slot] = OUT_AGAIN
        return self._drawn_again(batch)

    @property
    def _last_drawn(self) -> int:
        """How many batches of the chunk are drawn at most, waiting or not."""
        return min(self.steps_per_pass - self._drawn_before, len(self.chunk.states))

    @staticmethod
    def _drawn_again(batch: Batch) -> Batch:
        batch.chunk.restore_view(batch.slot)
        return batch

    def _leave_chunk(self) -> None:
        self._drawn_before += self.chunk.drawn
        self.chunk.drop_undrawn()
        self.chunk, self.limit = self._no_chunk, 0
        self._close_settled()

    def draw_outside(self, policy: Policy) -> Batch | None:
        """A batch from a random part of the data, outside the pass; None where the policy keeps too few samples."""
        if self.returned:
            return self._drawn_again(self.returned.popleft())
        self._close_settled()
        self.hand_over()
        chunk = self._planner.chunk_outside(policy, self._context)
        if chunk is None:
            return None
        chunk.drawn = 1
        self._open.append(chunk)
        return chunk.batch(0)

    def draw_again(self, indices: NDArray[np.int64]) -> Batch:
        """A batch of these samples, int64[M] and distinct, outside the pass."""
        self._close_settled()
        self.hand_over()
        chunk = self._planner.chunk_of(indices, self._context)
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
        late = chunk.sweep != self._planner.num_sweeps
        if late:
            # It may share samples with reports still held back, and reports count in the order they come.
            self._let_others_share()
        chunk.reports[slot] = means
        chunk.trends[slot] = trend
        chunk.states[slot] = REPORTED
        if late:
            chunk.learn()

    def settle(self, batch: Batch) -> None:
        """Close a batch that is out without learning from it."""
        batch.chunk.settle(batch.slot)

    def hand_back(self, batch: Batch) -> None:
        """Take back a batch that is out: it is the next to be drawn."""
        self.returned.appendleft(batch)

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

    def before_offsets(self, trend: float) -> Callable[[bool], None]:
        """What turns that which was expected of planned batches into differences to the trend, or back."""
        before = [(chunk, chunk.expected, chunk.typical) for chunk in self._open]
        after = [(c, [(share - 1) * trend for share in shares], (mean - 1) * trend) for c, shares, mean in before]

        def store(are_offsets: bool) -> None:
            for chunk, expected, typical in after if are_offsets else before:
                chunk.expected, chunk.typical = expected, typical
                # The records that it holds have estimates of the other kind.
                chunk.forget_records()

        return store

    def hand_over(self) -> None:
        """Let the table learn everything reported so far. When this happens changes no batch."""
        self.table.records.finish_writing()
        for chunk in self._open:
            chunk.learn()
        self.table.records.settle()

    def _close_settled(self) -> None:
        for chunk in [chunk for chunk in self._open if chunk.is_settled and chunk is not self.chunk]:
            chunk.learn()
            self._open.remove(chunk)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to draw the very same batches; batches that are out are drawn again, first in line."""
        self.hand_over()
        place = {id(chunk): number for number, chunk in enumerate(self._open)}
        out = [batch for chunk in self._open for batch in chunk.batches_out()]
        return {
            "context": [*self._context[:4], to_plain(self._context.outlook)],
            **self._planner.state_dict(),
            "drawn_before": self._drawn_before,
            "limit": self._last_drawn,
            "displaced": self.displaced,
            "abandoned": self.abandoned,
            "chunks": [chunk.state_dict() for chunk in self._open],
            "current": place.get(id(self.chunk), -1),
            "returned": [[place[id(batch.chunk)], batch.slot] for batch in out],
            "waiting": [[place[id(batch.chunk)], batch.slot] for batch in self._waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the table must be loaded first."""
        for chunk in self._open:
            chunk.give_up()
        self._reset()
        progress, number, batch_size, untrained_loss, outlook = state["context"]
        known = from_plain(outlook)
        self._context = Context(progress, number, batch_size, untrained_loss, known, self.table.group_sizes)
        self._planner.load_state_dict(state)
        self._drawn_before, self.limit = state["drawn_before"], state["limit"]
        self.displaced, self.abandoned = state["displaced"], state["abandoned"]
        self._open = [Chunk.from_state(chunk, self.table) for chunk in state["chunks"]]
        if state["current"] >= 0:
            self.chunk = self._open[state["current"]]
        self.returned = deque(self._open[chunk].batch(slot) for chunk, slot in state["returned"])
        self._waiting = deque(self._open[chunk].batch(slot) for chunk, slot in state["waiting"])


_new_tuple = tuple.__new__
_NOBODY = np.empty(0, np.int64)
