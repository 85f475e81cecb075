"""The batch sampler that Trainer sees, which resumes an epoch by skipping its first batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..torch import R8BatchSampler


class WholeEpoch(Sampler[Any]):
    """The batches of an R8BatchSampler; in mid-epoch as many empty ones come first as Trainer is about to skip.

    Trainer counts its accumulated gradients from the batches that it skips, so it must be left to skip some.

    Args:
        sampler: Draws the batches; it goes on where it was by itself.
        skips: Whether Trainer skips the batches that a checkpoint has had, as the next iteration begins.
    """

    def __init__(self, sampler: R8BatchSampler, *, skips: bool) -> None:
        self._sampler, self._skips = sampler, skips

    @property
    def r8(self) -> R8Scheduler:
        """The scheduler."""
        return self._sampler.r8

    def __iter__(self) -> Iterator[Any]:
        if self._skips:
            self._skips = False
            for _ in range(self.r8.pace.place % self.r8.steps_per_epoch):
                yield []
        yield from self._sampler

    def __len__(self) -> int:
        return len(self._sampler)
