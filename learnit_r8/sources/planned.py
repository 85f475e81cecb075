"""The planned batches of a run: passes over the data, in chunks that are planned when they are reached.

An epoch is one pass over the data in a random order that is never stored as a whole. A chunk of about 25,000 samples
is taken from it, its records are gathered once and arranged into batches, and its reports are written to the table at
once when its last batch is closed. As the samples of a pass are distinct, this equals learning from every report at
once (``tests/sources/test_planned.py``), and drawing or reporting a batch needs no numpy arithmetic. Cost:
``benchmarks/loop_step.py``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import check_choice
from ..policies.base import Context, Policy
from ..table.labels.predictions import PredictionRows
from ..table.losses import EXACT, Reading, check_kind, check_signs, read_loss
from ..table.table import SampleTable
from .chunk import OPEN, OUT_AGAIN, REPORTED, WAITING, Batch, Chunk, with_predictions
from .lengths import Buckets
from .planner import Planner, from_plain, to_plain

LAST_BATCH = ("short", "drop", "fill")


class PlannedBatches:
    """The source of batches that a policy chooses; see `Source`, also for what is not said here.

    Args:
        table: The sample table.
        policy: Selects and arranges samples from the second pass on; the first pass takes all samples, shuffled.
        seed: >= 0; together with the numbers of pass and chunk, the key of all randomness.
        last_batch: What happens with the N mod B samples at the end of a pass: they make a "short" batch, are dropped
            ("drop"), or are filled up ("fill") with samples from earlier in the pass, which are trained on again but
            learned from once.
        buckets: The samples by their length, where batches are of similar ones; else None.

    Raises:
        ValueError: ``last_batch`` is unknown, or "drop" with fewer samples than a batch.

    Attributes:
        buckets: As given.
        chunk: The chunk of the next batches.
        limit: Number of batches to draw from it before it is checked again.
    """

    can_probe = has_end = names_samples = counts_abandoned = True
    abandoned_text = (
        "the batch of step {step} was not reported with update_with_loss(); such batches are drawn once more at the "
        "end of the epoch, and count as refused steps if they are not reported then. For a loader that works ahead "
        "use draw() and report()."
    )

    def __init__(
        self, table: SampleTable, *, policy: Policy, seed: int = 0, last_batch: str = "short",
        buckets: Buckets | None = None,
    ) -> None:  # fmt: skip
        size, batch = table.num_samples, table.batch_size
        check_choice("last_batch", last_batch, LAST_BATCH)
        if last_batch == "drop" and size < batch:
            raise ValueError(f"last_batch='drop' needs num_samples >= batch_size={batch}, got {size}.")
        self.table = table
        self.policy = policy
        self.last_batch = last_batch
        self.steps_per_pass = size // batch if last_batch == "drop" else -(-size // batch)
        self.buckets = buckets
        if buckets is not None:
            self.steps_per_pass = buckets.num_batches
        self.displaced = 0
        self.abandoned = 0
        self._no_chunk = Chunk(_NOBODY, table, sizes=_NOBODY, expected=[], pass_number=-1, sweep=-1)
        self._reset()
        self._planner = Planner(
            table, policy=policy, seed=seed, last_batch=last_batch, before_sweep=self.hand_over,
            buckets=buckets,
        )  # fmt: skip
        table.learner.hold_back(self)

    def _reset(self) -> None:
        """Return to the state before the first pass."""
        self._context = Context(0.0, -1, self.table.batch_size, float("nan"))
        self.chunk, self.limit = self._no_chunk, 0
        self._open: list[Chunk] = []
        self.returned: deque[Batch] = deque()
        self._waiting: deque[Batch] = deque()
        self._drawn_before = 0

    @property
    def seed(self) -> int:
        """The seed of all randomness; loading a state changes it to the saved one."""
        return self._planner.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._planner.seed = seed

    def facts(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "batch_size": self.table.batch_size, "steps_per_epoch": self.steps_per_pass, "policy": self.policy.name,
            "grows": False,
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """See `Source`."""
        lengths = {} if self.buckets is None else {"lengths": self.buckets.digest()}
        return {**self.table.storage.identity(), "last_batch": self.last_batch, **lengths}

    def most_steady(self, epoch: int) -> int:
        """See `Source`."""
        # The first pass must see every sample, and one incident may cost at most a quarter of an epoch.
        return self.steps_per_pass // 4 if epoch > 0 else 0

    def samples_in(self, steps: int) -> int:
        """Samples drawn in ``steps`` steps, counting steady batches and fillings like any others.

        Of batches of different sizes within a pass it is as many as there are on average.
        """
        passes, rest = divmod(steps, self.steps_per_pass)
        size, batch = self.table.storage.num_samples, self.table.storage.batch_size
        if self.buckets is not None:
            return passes * size + rest * size // self.steps_per_pass
        each = size if self.last_batch == "short" else self.steps_per_pass * batch
        return passes * each + rest * batch

    @property
    def pass_number(self) -> int:
        """The current pass, 0-based; -1 before the first."""
        return self._context.pass_number

    def next_at_hand(self, epoch: int) -> Batch | None:
        """See `Source`."""
        chunk = self.chunk
        if chunk.drawn == self.limit or chunk.pass_number != epoch or self.returned:
            return None
        slot, chunk.drawn = chunk.drawn, chunk.drawn + 1
        return Batch(chunk, slot, chunk.views[slot])

    def check_again(self) -> None:
        """See `Source`."""
        self.limit = self.chunk.drawn

    def start_pass(self, number: int, progress: float) -> str:
        """End the previous pass, including its undrawn batches, and start another.

        Drawn batches may still be reported. The new pass is planned with everything reported so far.

        Args:
            number: Number of the pass; pass 0 takes every sample in random order.
            progress: Finished share of the budget, for the policy.

        Returns:
            What the user should know of it; "" if nothing.
        """
        self._leave_chunk()
        if self.pass_number >= 0:
            self.displaced += self.steps_per_pass - self._drawn_before
        for batch in self._waiting:
            self.close(batch)
        self._waiting.clear()
        self._drawn_before = 0
        self._planner.start_sweep()
        self._note_sweep()
        self._context = self._planner.context(number, progress, self._context.outlook)
        if number and self.policy.needs_exact and not self._context.outlook.is_exact:
            return (
                f"policy {self.policy!r} needs the loss of each sample but got {self.table.source}, so it leaves out "
                "no sample because of its loss. Report a vector of losses."
            )
        if number and self.policy.needs_predictions and self.table.storage.evidence.take(_NOBODY) is None:
            return (
                f"policy {self.policy!r} needs predictions of one class a sample but got losses without them, so no "
                "loss weighs less than another. Report predictions with the losses, see predictions_of()."
            )
        return ""

    def _note_sweep(self) -> None:
        """Note which open chunks are of a sweep before the present one, or of none."""
        for chunk in self._open:
            chunk.is_late = chunk.sweep != self._planner.num_sweeps

    def look_ahead(self) -> tuple[Chunk, Planner] | None:
        """Plan the next chunk if the current one is used up, for `next`; the only part of a draw that asks the policy.

        Raises:
            RuntimeError: the policy selects no samples.
        """
        if self.returned or self.pass_number < 0 or self.chunk.drawn < self._last_drawn:
            return None
        left = self.steps_per_pass - self._drawn_before - self.chunk.drawn
        return self._planner.look_ahead(self._context, left) if left else None

    def next(self, ahead: tuple[Chunk, Planner] | None = None) -> Batch:
        """Draw the next batch of the pass, or one that was returned.

        Args:
            ahead: What `look_ahead` has just returned, if it was called.

        Raises:
            RuntimeError: all batches of the pass were drawn, or the policy selects no samples.
        """
        if self.returned:
            return self._drawn_again(self.returned.popleft())
        if self.chunk.drawn == self.limit:
            if self.chunk.drawn == self._last_drawn:
                ahead = self.look_ahead() if ahead is None else ahead
                self._leave_chunk()
                if ahead is not None:
                    self.chunk, planner = ahead
                    self._planner.follow(planner)
                    self._open.append(self.chunk)
                    self._note_sweep()
            self.limit = self._last_drawn
        if self.chunk.drawn < self.limit:
            self.chunk.drawn += 1
            return self.chunk.batch(self.chunk.drawn - 1)
        if not self._waiting:
            raise RuntimeError(f"pass {self.pass_number} has {self.steps_per_pass} batches, and all were drawn.")
        batch = self._waiting.popleft()
        batch.chunk.states[batch.slot] = OUT_AGAIN
        return self._drawn_again(batch)

    @property
    def _last_drawn(self) -> int:
        """Number of batches of the chunk that belong to the pass."""
        return min(self.steps_per_pass - self._drawn_before, len(self.chunk.states))

    @staticmethod
    def _drawn_again(batch: Batch) -> Batch:
        batch.chunk.restore_view(batch.slot)
        return batch

    def _leave_chunk(self) -> None:
        self._drawn_before += self.chunk.drawn
        self.chunk.close_from(self.chunk.drawn)
        self.chunk.drawn = len(self.chunk.states)
        self.chunk, self.limit = self._no_chunk, 0
        self._drop_closed()

    def draw_outside(self, policy: Policy) -> Batch | None:
        """Draw a batch from a random part of the data, outside the pass; None if the policy selects too few samples."""
        if self.returned:
            return self._drawn_again(self.returned.popleft())
        self._drop_closed()
        self.hand_over()
        chunk = self._planner.chunk_outside(policy, self._context)
        if chunk is None:
            return None
        chunk.drawn, chunk.is_late = 1, True
        self._open.append(chunk)
        return chunk.batch(0)

    def again(self, witness: NDArray[np.int64]) -> Batch:
        """Draw a batch of these samples, int64[M] and distinct, outside the pass."""
        self._drop_closed()
        self.hand_over()
        # Nobody expects anything of its loss.
        chunk = Chunk(
            witness, self.table, sizes=np.array([len(witness)]), expected=[math.nan], pass_number=-1, sweep=-1
        )
        chunk.drawn, chunk.is_probe, chunk.is_late = 1, True, True
        self._open.append(chunk)
        return chunk.batch(0)

    def read(self, chunk: Chunk, slot: int, loss: Any, part_size: int | None, predictions: Any) -> Reading:
        """See `Source`."""
        storage, count = self.table.storage, len(chunk.views[slot])
        reading = read_loss(loss, count, part_size)
        if storage.is_single:
            reading = reading._replace(part_size=EXACT)
        elif storage.part_size == EXACT and count == 1:
            # The loss of a single sample, without its dimension.
            reading = reading._replace(part_size=EXACT, means=np.atleast_1d(reading.means))
        if reading.part_size != storage.part_size:
            check_kind(reading.part_size, storage.part_size)
            if reading.part_size == EXACT:
                check_signs(reading.means)
        weights = None if chunk.weights is None else chunk.weights_of(slot)
        if weights is not None and reading.part_size == EXACT and weights.any():
            # What weighs less grows, while the losses that are trained on fall.
            reading = reading._replace(mean=float(np.average(np.atleast_1d(reading.means), weights=weights)))
        return reading if predictions is None else with_predictions(reading, predictions, storage)

    def report(
        self, chunk: Chunk, slot: int, means: Any, trend: float, predictions: PredictionRows | None = None
    ) -> None:
        """See `Source`; the table learns it before its samples are planned again."""
        if chunk.is_late:
            # It may share samples with reports held back, which must be learned in the order they came.
            self.hand_over()
        chunk.reports[slot] = means
        if predictions is not None:
            chunk.predictions[slot] = predictions.rows
        chunk.trends[slot] = trend
        chunk.states[slot] = REPORTED
        if chunk.is_late or (predictions is not None and predictions.num_places > 1):
            # Many places of a whole chunk would take too much memory.
            self.hand_over()

    def close(self, batch: Batch) -> None:
        """Close a drawn batch without learning from it."""
        batch.chunk.close(batch.slot)

    def hand_back(self, batch: Batch) -> None:
        """Take back a drawn batch, which is then drawn next."""
        self.returned.appendleft(batch)

    def abandon(self, batch: Batch, *, may_come_again: bool = True) -> bool:
        """Take back a batch that will not be reported; returns whether it is drawn once more, as `put_back` does."""
        self.abandoned += 1
        if may_come_again:
            return self.put_back(batch)
        self.close(batch)
        return False

    def can_put_back(self, batch: Batch) -> bool:
        """Whether `put_back` would have it drawn once more: only a batch of the current pass, the first time."""
        return batch.chunk.states[batch.slot] == OPEN and batch.chunk.pass_number == self.pass_number

    def put_back(self, batch: Batch) -> bool:
        """Take back a batch to be drawn once more at the end of the pass, so that its step is free again.

        Returns:
            Whether it is, as `can_put_back` says. Else it is settled.
        """
        if self.can_put_back(batch):
            batch.chunk.states[batch.slot] = WAITING
            self._waiting.append(batch)
            return True
        self.close(batch)
        return False

    def forget_outside(self) -> None:
        """Forget batches from outside the pass, so that they are not drawn again after a resume."""
        self._open = [chunk for chunk in self._open if chunk.pass_number >= 0]

    def use_offsets(self, trend: float) -> None:
        """Turn the expected losses of planned batches into differences from the trend, as the estimates become."""
        for chunk in self._open:
            chunk.expected = [(share - 1) * trend for share in chunk.expected]
            chunk.typical = (chunk.typical - 1) * trend

    def hand_over(self) -> None:
        """Let the table learn all reports so far. When this is called does not affect which batches are drawn."""
        for chunk in self._open:
            chunk.learn()

    def _drop_closed(self) -> None:
        for chunk in [chunk for chunk in self._open if chunk.is_closed and chunk is not self.chunk]:
            chunk.learn()
            self._open.remove(chunk)

    def state(self, random: dict[str, Any] | None = None) -> dict[str, Any]:
        """What is needed to draw exactly the same batches, with a table that will have learned every report so far.

        Batches that are drawn and not reported are drawn again first.
        """
        # A probe is of an experiment that is not saved.
        kept = [chunk for chunk in self._open if not chunk.is_probe]
        place = {id(chunk): number for number, chunk in enumerate(kept)}
        return {
            "context": [*self._context[:4], to_plain(self._context.outlook)],
            **self._planner.state_dict(),
            "drawn_before": self._drawn_before,
            "limit": self._last_drawn,
            "displaced": self.displaced,
            "abandoned": self.abandoned,
            "chunks": [chunk.state_dict() for chunk in kept],
            "current": place.get(id(self.chunk), -1),
            "returned": [
                [place[id(chunk)], slot]
                for chunk in kept
                for slot in range(chunk.drawn)
                if chunk.states[slot] in (OPEN, OUT_AGAIN)
            ],
            "waiting": [[place[id(batch.chunk)], batch.slot] for batch in self._waiting],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Load what `state` returned; the table must be loaded first."""
        for chunk in self._open:
            chunk.close_from(0)
        self._reset()
        progress, number, batch_size, untrained_loss, outlook = state["context"]
        known = from_plain(outlook)
        self._context = Context(progress, number, batch_size, untrained_loss, known, self.table.storage.group_sizes)
        self._planner.load_state_dict(state)
        self._drawn_before, self.limit = state["drawn_before"], state["limit"]
        self.displaced, self.abandoned = state["displaced"], state["abandoned"]
        self._open = [Chunk.from_state(chunk, self.table) for chunk in state["chunks"]]
        if state["current"] >= 0:
            self.chunk = self._open[state["current"]]
        self._note_sweep()
        self.returned = deque(self._open[chunk].batch(slot) for chunk, slot in state["returned"])
        self._waiting = deque(self._open[chunk].batch(slot) for chunk, slot in state["waiting"])


_NOBODY = np.empty(0, np.int64)
