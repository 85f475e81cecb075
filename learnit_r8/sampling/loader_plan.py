"""The plan of a run whose batches come from the user's loader: it counts them, and draws none.

It has what the engine uses of a `Plan`. A batch is a chunk of its own, so that a report finds its place as it does in a
chunk that was planned.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..table.losses import WHOLE_BATCH, Reading, read_mean, read_rows
from ..table.names import Members
from .chunk import CLOSED, REPORTED, Batch
from .held_reports import HeldReports

if TYPE_CHECKING:
    from ..table.table import SampleTable

UNKNOWN_LENGTH = sys.maxsize
"""Steps of a pass that only ends where its loader does."""

MOST_HELD = 2**13
"""Samples whose reports are held back at most, unless they are more in one batch: some .5 ms of learning."""


class Size(NamedTuple):
    """The size of a batch.

    Attributes:
        samples: Samples in it; 1 where its size is not known.
        tokens: Tokens in it, or 0.
    """

    samples: int = 1
    tokens: int = 0


class LoaderBatch:
    """A batch of the user's, in the form of a chunk with one batch.

    Args:
        table: The table of the run.
        pass_number: Its pass; -1 for one that is handed out again.
        item: What the loader gave, to be handed out again; None if it is not kept.
        size: Its size.
        members: Its samples; None if it does not say which.

    Attributes:
        states, drawn, reports, trends, rates: As of a `Chunk`, of one batch.
        item: As given.
        size: As given.
        members: As given.
        predictions: float32[3 P, M], what was reported with the loss; empty without.
    """

    __slots__ = (
        "item", "members", "pass_number", "predictions", "rates", "reports", "size", "states", "table", "trends",
    )  # fmt: skip

    drawn = 1
    expected = (math.nan,)
    typical = math.nan
    sweep = 0
    weights = None
    is_probe = is_extra = False

    def __init__(
        self, table: SampleTable, pass_number: int, item: Any, size: Size, members: Members | None = None
    ) -> None:
        self.table, self.pass_number, self.item, self.size, self.members = table, pass_number, item, size, members
        self.states = bytearray(1)
        self.predictions: list[NDArray[np.float32]] = []
        self.reports, self.trends, self.rates = [0.0], [0.0], [0.0]

    def read(self, loss: Any) -> Reading:
        """Turn a reported loss into numbers; its kind is that of the table, once that has one."""
        storage, members = self.table.storage, self.members
        kind = storage.part_size
        if members is None:
            reading = read_mean(loss)
        else:
            indices, counts = members
            if kind == WHOLE_BATCH and not storage.num_seen:
                # That of batches without samples.
                kind = None
            reading = read_rows(loss, len(indices if counts is None else counts), counts, kind)
        return reading if kind is None or kind == reading[2] else reading._replace(part_size=kind)

    def close(self, slot: int) -> None:
        """Close it."""
        self.states[slot] = CLOSED

    def witness_of(self, indices: NDArray[np.int64]) -> Any:
        """What `LoaderPlan.draw_again` takes: the item; None if it is not kept."""
        return self.item

    def shares_of(self, slot: int, count: int) -> tuple[float, ...]:
        """Unknown."""
        return ()


class WitnessBatch(LoaderBatch):
    """A batch that is handed out again, to test weights with it."""

    __slots__ = ("is_extra",)

    is_probe = True
    sweep = -1


class _NoSweeps(NamedTuple):
    num_sweeps: int = 0


class UserBatches(NamedTuple):
    """Stands for the policy, which is the user's own."""

    name: str = "your own batches"
    needs_exact: bool = False


class LoaderPlan:
    """Counts the batches that a run takes from the user's loader, and passes their reports to the table.

    Args:
        table: A table that grows.
        seed: >= 0; nothing is drawn with it.

    Attributes:
        steps_per_pass: More than there will ever be, as a pass ends where its loader does.
        num_samples: Samples in the batches so far.
        taken: Items that the loader has given in this pass, but for the one in hand.
        left_out: Batches of this pass that the loader's sampler has drawn and that held nothing but samples in
            quarantine.
        abandoned: Batches that were not reported.
    """

    last_batch = "short"
    chunk = None
    returned = ()
    outlook = None

    def __init__(self, table: SampleTable, *, seed: int = 0) -> None:
        self.table, self.seed = table, seed
        self.policy = UserBatches()
        self.steps_per_pass = UNKNOWN_LENGTH
        self.num_samples = self.taken = self.left_out = self.abandoned = 0
        self._planner = _NoSweeps()
        self._held = HeldReports(table)
        table.learner.hold_back(self)

    @property
    def is_full(self) -> bool:
        """Whether the reports that are held back are many enough to be learned."""
        return self._held.num_samples >= MOST_HELD

    def samples_in(self, steps: int) -> int:
        """Samples in the batches so far, which are those of ``steps`` steps."""
        return self.num_samples

    def take(self, item: Any, size: Size, pass_number: int, *, members: Members | None = None) -> Batch:
        """Take a batch that the loader has given.

        Args:
            item: What is kept of it as long as a backup may want it; None for nothing.
            size: Its size.
            pass_number: The pass.
            members: Its samples, or None.
        """
        self.num_samples += size.samples
        batch = LoaderBatch(self.table, pass_number, item, size, members)
        if members is None:
            return self._as_batch(batch)
        self._held.add(members, batch)
        return _new_tuple(Batch, (batch, 0, members[0]))

    def tell_members(self, chunk: LoaderBatch, members: Members) -> None:
        """Note the samples of a batch that was taken without."""
        chunk.members = members
        self._held.add(members, chunk)

    def draw_again(self, item: Any) -> Batch:
        """Hand out a batch once more, outside any pass."""
        return self._as_batch(WitnessBatch(self.table, -1, item, Size()))

    @staticmethod
    def _as_batch(chunk: LoaderBatch) -> Batch:
        count = chunk.size.samples
        indices = _NOBODY if count <= len(_NOBODY) else np.full(count, -1)
        return Batch(chunk, 0, indices[:count])  # type: ignore[arg-type]

    def report(self, batch: Batch, means: Any, trend: float, predictions: Any = None) -> None:
        """Keep the report of a batch, from which the table learns later."""
        chunk: Any = batch.chunk
        if chunk.members is None:
            chunk.close(0)
            return
        chunk.reports[0], chunk.trends[0], chunk.states[0] = means, trend, REPORTED
        chunk.predictions[:] = [] if predictions is None else [predictions.rows]
        if predictions is not None and predictions.num_places > 1:
            # Those of many batches would take too much memory.
            self.hand_over()

    def close(self, batch: Batch) -> None:
        """Close a batch without learning from it; what came before is learned, as its samples may be suspected."""
        batch.chunk.close(batch.slot)
        self.hand_over()

    def abandon(self, batch: Batch, *, may_come_again: bool = False) -> bool:
        """Close a batch that will not be reported; it does not come again, so returns False."""
        self.abandoned += 1
        self.num_samples -= batch.chunk.size.samples  # type: ignore[attr-defined]
        self.close(batch)
        return False

    def can_put_back(self, batch: Batch) -> bool:
        """Never, as the loader says what comes next."""
        return False

    def check_again(self) -> None:
        """Do nothing: no batch is planned."""

    def use_offsets(self, trend: float) -> None:
        """Do nothing: no loss is predicted."""

    def hand_over(self) -> None:
        """Let the table learn all reports so far."""
        self._held.hand_over()

    def position(self) -> dict[str, Any]:
        """How far the run is; the loader's own state is kept by the `Feed`."""
        return {
            "samples": self.num_samples, "taken": self.taken, "left_out": self.left_out, "abandoned": self.abandoned,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `position` returned."""
        self.num_samples, self.taken, self.abandoned = state["samples"], state["taken"], state["abandoned"]
        self.left_out = state["left_out"]
        self._held.clear()


_NOBODY = np.full(4096, -1)
_NOBODY.flags.writeable = False
_new_tuple = tuple.__new__
