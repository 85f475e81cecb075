"""The replay check: after a backup is restored, the first batch after it is trained on again.

Its loss must repeat. If it does not, but a second replay gives the same loss as the first, the copy in memory or the
hardware has changed something. If every loss is different, training is not deterministic and nothing can be concluded.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .ram_backup import RamBackup, Slot

TOLERANCE = 1e-6
"""Relative difference up to which two losses count as equal, as sums may be computed in another order."""


class ReplayCheck:
    """Compares the loss of the first batch after a backup with the loss of the same batch after a restore.

    Args:
        backup: The states in RAM.
        is_on: Whether anything is checked.

    Attributes:
        is_on: As given.
        is_due: Whether the next batch must be the first one after the restored backup.
    """

    def __init__(self, backup: RamBackup, *, is_on: bool) -> None:
        self._backup = backup
        self.is_on = is_on
        self.cancel()

    def cancel(self) -> None:
        """End the check of the restored state."""
        self.is_due = False
        self._slot: Slot | None = None
        self._drawn = -1
        self._losses: list[float] = []

    def note(self, draw: int, indices: NDArray[np.int64], loss: float) -> None:
        """Note a good loss of batch number ``draw``; the first one after a backup is stored with it."""
        self._backup.note_first(draw, indices, loss)

    def begin(self, step: int) -> None:
        """Start the check of the just restored backup of a step, if the first batch after it is known."""
        self.cancel()
        self._slot = next((s for s in self._backup.states() if s.step == step and s.batch is not None), None)
        self.is_due = self.is_on and self._slot is not None

    def draw(self, draw: int) -> NDArray[np.int64]:
        """The samples to train on again, int64[B], as batch number ``draw``."""
        assert self._slot is not None
        assert self._slot.batch is not None
        self.is_due, self._drawn = False, draw
        batch: NDArray[np.int64] = self._slot.batch
        return batch

    def reported(self, draw: int, loss: float) -> tuple[str, bool]:
        """Compare a reported loss.

        Args:
            draw: Number of its batch.
            loss: Its loss.

        Returns:
            The finding as text, "" while there is none; and whether the model must be restored again, as the loss has
            not repeated.
        """
        slot = self._slot
        if slot is None or draw != self._drawn:
            # A batch drawn earlier has changed the weights meanwhile.
            self.cancel()
            return "", False
        self._losses.append(loss)
        named = (
            f"the first batch after the backup of step {slot.step}, whose loss was {slot.loss!r}, was trained on again"
        )
        if _equal(loss, slot.loss):
            self.cancel()
            return f"{named} and had the same loss: the backup and the hardware are unchanged.", False
        if len(self._losses) < 2:
            self.is_due = True
            return "", True
        first, second = self._losses
        self.cancel()
        if _equal(first, second):
            return (
                f"{named} and had another loss, the same one twice ({second!r}): the backup in memory or the hardware "
                "has changed. Check the memory and the hardware.",
                True,
            )
        return (
            f"{named} and had another loss each time ({first!r}, {second!r}): training is not deterministic, so this "
            "says nothing about memory or hardware.",
            True,
        )


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=0.0)
