"""The plan of a run whose batches come from the user's loader: it counts them, and knows no sample.

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

from .chunk import SETTLED, Batch

if TYPE_CHECKING:
    from ..table.table import SampleTable

UNKNOWN_LENGTH = sys.maxsize
"""Steps of a pass that only ends where its loader does."""


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

    Attributes:
        states, drawn, reports, trends, rates: As of a `Chunk`, of one batch.
        item: As given.
        size: As given.
    """

    __slots__ = ("drawn", "item", "pass_number", "rates", "reports", "size", "states", "table", "trends")

    expected = (math.nan,)
    typical = math.nan
    sweep = 0
    weights = None

    def __init__(self, table: SampleTable, pass_number: int, item: Any, size: Size) -> None:
        self.table, self.pass_number, self.item, self.size = table, pass_number, item, size
        self.states, self.drawn = bytearray(1), 1
        self.reports, self.trends, self.rates = [0.0], [0.0], [0.0]

    def settle(self, slot: int) -> None:
        """Close it."""
        self.states[slot] = SETTLED

    def witness_of(self, indices: NDArray[np.int64]) -> Any:
        """What `LoaderPlan.draw_again` takes: the item; None if it is not kept."""
        return self.item

    def shares_of(self, slot: int, count: int) -> tuple[float, ...]:
        """Unknown."""
        return ()


class _NoSweeps(NamedTuple):
    num_sweeps: int = 0


class UserBatches(NamedTuple):
    """Stands for the policy, which is the user's own."""

    name: str = "your own batches"
    needs_exact: bool = False


class LoaderPlan:
    """Counts the batches that a run takes from the user's loader.

    Args:
        table: A table of no samples.
        seed: >= 0; nothing is drawn with it.

    Attributes:
        steps_per_pass: More than there will ever be, as a pass ends where its loader does.
        num_samples: Samples in the batches so far.
        taken: Items that the loader has given in this pass, but for the one in hand.
        abandoned: Batches that were not reported.
    """

    last_batch = "short"
    chunk = None
    returned = ()
    has_returned = False
    displaced = 0
    num_sweeps = 0
    outlook = None

    def __init__(self, table: SampleTable, *, seed: int = 0) -> None:
        self.table, self.seed = table, seed
        self.policy = UserBatches()
        self.steps_per_pass = UNKNOWN_LENGTH
        self.num_samples = self.taken = self.abandoned = 0
        self._planner = _NoSweeps()
        table.learner.hold_back(self)

    def samples_in(self, steps: int) -> int:
        """Samples in the batches so far, which are those of ``steps`` steps."""
        return self.num_samples

    def take(self, item: Any, size: Size, pass_number: int, *, is_kept: bool) -> Batch:
        """Take a batch that the loader has given.

        Args:
            item: What it gave.
            size: Its size.
            pass_number: The pass.
            is_kept: Whether the item is kept as long as a backup may want it.
        """
        self.num_samples += size.samples
        return self._as_batch(LoaderBatch(self.table, pass_number, item if is_kept else None, size))

    def draw_again(self, item: Any) -> Batch:
        """Hand out a batch once more, outside any pass."""
        return self._as_batch(LoaderBatch(self.table, -1, item, Size()))

    @staticmethod
    def _as_batch(chunk: LoaderBatch) -> Batch:
        count = chunk.size.samples
        indices = _NOBODY if count <= len(_NOBODY) else np.full(count, -1)
        return Batch(chunk, 0, indices[:count])  # type: ignore[arg-type]

    def report(self, batch: Batch, means: Any, trend: float, predictions: Any = None) -> None:
        """Close a batch that was reported: there is no sample to learn its loss."""
        self.settle(batch)

    def settle(self, batch: Batch) -> None:
        """Close a batch without learning from it."""
        batch.chunk.settle(batch.slot)

    def abandon(self, batch: Batch) -> bool:
        """Close a batch that will not be reported; it does not come again, so returns False."""
        self.abandoned += 1
        self.num_samples -= batch.chunk.size.samples  # type: ignore[attr-defined]
        self.settle(batch)
        return False

    def check_again(self) -> None:
        """Do nothing: no batch is planned."""

    hand_over = check_again

    def use_offsets(self, trend: float) -> None:
        """Do nothing: no loss is predicted."""

    def position(self) -> dict[str, Any]:
        """How far the run is; the loader's own state is kept by the `Feed`."""
        return {"samples": self.num_samples, "taken": self.taken, "abandoned": self.abandoned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `position` returned."""
        self.num_samples, self.taken, self.abandoned = state["samples"], state["taken"], state["abandoned"]


_NOBODY = np.full(4096, -1)
_NOBODY.flags.writeable = False
