"""The trainers: what trains on the batches of a feed or of a prefetch, an adapter or a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Trainer(Protocol):
    """Trains on batches that were taken before; an adapter that does so joins whoever hands them out."""

    def settle(self) -> object:
        """Report every loss that is held back."""

    def before_iteration(self) -> None:
        """An iteration, for which a loader sets itself up, is about to begin."""

    def before_first_batch(self) -> None:
        """The first batch of an iteration is about to be taken."""

    def between_steps(self) -> None:
        """A batch is asked for, between two steps of the training."""

    def before_probe(self) -> None:
        """A probe is about to be handed out: the gradients of other batches must not be added to its own."""


class FeedTrainer(Trainer, Protocol):
    """Trains on the batches of a feed."""

    def hand_out(self, item: Any) -> object:
        """A batch is handed out, of which the next loss is."""


class PrefetchTrainer(Trainer, Protocol):
    """Trains on the batches of a prefetch."""

    def forget(self) -> object:
        """Drop the losses that are held back."""


class PlainTrainer:
    """The trainer where no adapter has joined: a loop that reports each loss at once.

    Args:
        between_steps: That of the engine.
    """

    def __init__(self, between_steps: Callable[[], None]) -> None:
        self.between_steps = between_steps

    def settle(self) -> None:
        """Do nothing."""

    forget = before_iteration = before_first_batch = before_probe = settle

    def hand_out(self, item: Any) -> None:
        """Do nothing."""
