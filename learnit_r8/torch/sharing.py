"""Sharing: which part of a batch is this process's, and how its losses come to the scheduler."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from .readback import Readback, readback_on

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler


class Sharing:
    """A process alone: all of a batch is its own. Processes that train together have a kind of their own.

    Attributes:
        rank: Number of this process among them.
    """

    rank = 0

    def settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What this process's scheduler is made with.

        Args:
            settings: What the user asked for.
        """
        return settings

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This process's part of a batch, a contiguous slice.

        Args:
            rows: T[B], the indices of the whole batch, or something else that it has of each sample.
        """
        return rows

    def readback(self, device: torch.device) -> Readback:
        """What brings losses to the scheduler: those of the whole batch, whatever part was put in.

        Args:
            device: Where this process's losses are.
        """
        return readback_on(device)

    def between_steps(self, r8: R8Scheduler, num_held_back: int) -> None:
        """Let the scheduler take backups and write checkpoints, now that the model's step is complete.

        Args:
            r8: The scheduler.
            num_held_back: Losses on their way; the scheduler fetches them where it must know them.
        """
        r8.between_steps()

    def before_iteration(self) -> None:
        """A loader is about to begin: whatever is done once at the border of an epoch may be done again."""

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """A ``with`` block in which processes wait for each other."""
        return _NOBODY

    def check(self, r8: R8Scheduler, model: Any, **settings: Any) -> None:
        """Raise ValueError unless the scheduler and the model can be shared like this.

        Args:
            r8: The scheduler.
            model: The model.
            **settings: How the adapter goes about its steps; the same in all processes.
        """


_NOBODY = contextlib.nullcontext()

ALONE = Sharing()
