"""The source of a run's batches: what the engine asks of it, whoever decides which samples come next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..policies.base import Policy
from ..table.labels.predictions import PredictionRows
from ..table.losses import Reading
from ..table.table import SampleTable
from .chunk import Batch


class Source(Protocol):
    """Hands out the batches of a run, and passes their reports to the table.

    `PlannedBatches` plans them with a policy; `FollowedBatches` takes them from the user's iterable. What a source does
    that chooses no batch stands here; the others are without a body.

    Attributes:
        table: Learns the reports.
        seed: Key of all randomness; loading a state changes it to the saved one.
        policy: Decides which samples come next; of the user's own batches, that is said by its name.
        steps_per_pass: Batches in a pass; more than there will ever be where only the iterable knows.
        pass_number: The current pass, 0-based; -1 before the first.
        displaced: Batches that were not drawn before their pass ended.
        abandoned: Batches that were drawn and given up.
        returned: Batches that are drawn before any other, such as those not reported when the state was saved.
        can_probe: Whether a witness can be handed out from the first step on.
        has_end: Whether the end of a pass is known, so that a batch can be left out for a probe.
        names_samples: Whether a witness is the indices of its samples, which are saved with the run.
        counts_abandoned: Whether a batch that is given up for good counts as a step.
        abandoned_text: What to say once of a batch that was not reported; ``{step}`` stands for its step.
    """

    table: SampleTable
    seed: int
    policy: Any
    steps_per_pass: int
    abandoned: int
    displaced: int = 0
    can_probe: bool = False
    names_samples: bool = False
    counts_abandoned: bool = False
    abandoned_text: str

    @property
    def pass_number(self) -> int: ...

    @property
    def has_end(self) -> bool: ...

    @property
    def returned(self) -> Sequence[Batch]:
        return ()

    def facts(self) -> dict[str, Any]:
        """What `RunStarted` says of it."""

    def identity(self) -> dict[str, Any]:
        """The facts in which a saved state must agree with it."""

    def samples_in(self, steps: int) -> int:
        """Samples in the batches of so many steps."""

    def most_steady(self, epoch: int) -> int:
        """Most batches of low-loss samples that may be drawn outside the pass after a restore."""
        return 0

    def next_at_hand(self, epoch: int) -> Batch | None:
        """Hand out the next batch of an epoch if it is at hand, so that nobody is asked; None if `next` must be."""

    def look_ahead(self) -> Any:
        """Ask whoever must be asked for the next batch, for `next`; this changes nothing that is saved."""
        return None

    def start_pass(self, number: int, progress: float) -> str:
        """End the previous pass and start another; returns what the user should know of it, "" if nothing."""
        return ""

    def next(self, ahead: Any = None) -> Batch:
        """Hand out the next batch; ``ahead`` is what `look_ahead` has just returned."""

    def again(self, witness: Any) -> Batch:
        """Hand out a batch once more, outside any pass; ``witness`` is what `witness_of` of its chunk was."""

    def draw_outside(self, policy: Policy) -> Batch | None:
        """Draw a batch from a random part of the data, outside the pass; None if there is none."""
        return None

    def forget_outside(self) -> None:
        """Forget batches from outside the pass, so that they are not drawn again after a resume."""
        return

    def read(self, chunk: Any, slot: int, loss: Any, part_size: int | None, predictions: Any) -> Reading:
        """Turn the reported loss of a batch, and what was reported with it, into numbers; see `R8Scheduler.report`.

        Args:
            chunk: Its chunk, of this source.
            slot: Its position there.
            loss, part_size, predictions: As reported.
        """

    def report(
        self, chunk: Any, slot: int, means: Any, trend: float, predictions: PredictionRows | None = None
    ) -> None:
        """Keep the report of a batch, from which the table learns at the latest when somebody reads it.

        Args:
            chunk: Its chunk, of this source.
            slot: Its position there.
            means: Mean loss of the batch, or float64[P] of its consecutive parts.
            trend: The trend of the losses before it.
            predictions: What was reported with it, or None.
        """

    def close(self, batch: Batch) -> None:
        """Close a batch without learning from it."""

    def abandon(self, batch: Batch, *, may_come_again: bool = True) -> bool:
        """Take back a batch that will not be reported; returns whether it comes again."""

    def hand_back(self, batch: Batch) -> None:
        """Take back a batch, which is then drawn next."""

    def can_put_back(self, batch: Batch) -> bool:
        """Whether `put_back` would have it drawn once more."""
        return False

    def put_back(self, batch: Batch) -> bool:
        """Take back a batch to be drawn once more in its pass: its step is free again; returns whether it will be."""
        return False

    def hand_over(self) -> None:
        """Let the table learn all reports so far."""

    def use_offsets(self, trend: float) -> None:
        """Turn expected losses into differences from the trend, as the estimates become."""
        return

    def check_again(self) -> None:
        """Have the next draw look anew, as the position of the run has changed."""
        return

    def state(self, random: dict[str, Any] | None = None) -> dict[str, Any]:
        """What is needed to go on with exactly the same batches, except the table.

        Args:
            random: What `random_state` has just returned; None to read it.
        """

    def load(self, state: Mapping[str, Any]) -> None:
        """Load what `state` returned; the table must be loaded first."""
