"""A process that trains a model alone: all of a batch is its own, and its losses go straight to the scheduler."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from ..readback import Readback, readback_on

if TYPE_CHECKING:
    from ...engine.settings import SchedulerSettings
    from ...scheduler import R8Scheduler


class SingleProcess:
    """A process that trains a model alone; `Together` does the same for one of several.

    Attributes:
        rank: Number of this process among them.
        size: Processes.
        gather: Returns the values of all processes, on each of them; None, as there is one.
    """

    rank, size = 0, 1
    gather = None

    def settings(self, settings: SchedulerSettings) -> SchedulerSettings:
        """The settings for the scheduler of this process.

        Args:
            settings: As the user gave them.
        """
        return settings

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This process's part of a batch, a contiguous slice.

        Args:
            rows: T[B], the indices of the whole batch, or other values of its samples.
        """
        return rows

    def readback(self, device: torch.device) -> Readback:
        """The readback that brings the losses of the whole batch to the scheduler, whatever part was put in.

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
        r8.host.between_steps()

    def before_iteration(self) -> None:
        """A loader is about to begin; what is done once at the border of an epoch may be done again."""

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """A ``with`` block in which processes wait for each other; this one has nobody to wait for."""
        return _NO_WAIT

    def check(self, r8: R8Scheduler, model: Any, resume: Any = None, **settings: Any) -> None:
        """Raise ValueError unless the scheduler and the model can be shared like this.

        Args:
            r8: The scheduler.
            model: The model.
            resume: Not used: the scheduler has resumed by itself.
            **settings: Options of the adapter that must be the same in all processes.
        """


_NO_WAIT = contextlib.nullcontext()

ALONE = SingleProcess()
