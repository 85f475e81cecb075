"""The trainers of a feed: what trains on its batches, an adapter or a plain loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..engine import Engine


class FeedTrainer(Protocol):
    """Trains on the batches of a feed: an adapter that joins it; see `_adapters.prefetch.Trainer`."""

    def settle(self) -> object:
        """Report every loss that is held back."""

    def before_iteration(self) -> None:
        """An iteration is about to begin."""

    def before_first_batch(self) -> None:
        """The first batch of an iteration is about to be taken."""

    def between_steps(self) -> None:
        """A batch is asked for, between two steps of the training."""

    def before_probe(self) -> None:
        """A probe is about to be handed out."""

    def hand_out(self, item: Any) -> object:
        """A batch is handed out, of which the next loss is."""


class PlainTrainer:
    """The trainer where no adapter has joined: a loop that reports each loss at once.

    Args:
        run: The engine.
    """

    def __init__(self, run: Engine) -> None:
        self.between_steps = run.between_steps

    def settle(self) -> None:
        """Do nothing."""

    before_iteration = before_first_batch = before_probe = settle

    def hand_out(self, item: Any) -> None:
        """Do nothing."""
