"""The replay check: the first batch after a backup is trained on again when the backup was restored.

Its loss must repeat. Where it does not, but a second replay repeats the first, the copy in memory or the hardware has
changed something. Where it is another loss each time, training is not deterministic, and nothing can be said.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .ram_backup import RamBackup, Slot

TOLERANCE = 1e-6
"""Relative difference of two losses that count as equal; sums may be taken in another order."""


class ReplayCheck:
    """Compares the loss of the first batch after a backup with that of the same batch after it was restored.

    Args:
        backup: The states in RAM.
        is_on: Whether anything is checked.

    Attributes:
        is_on: As given.
        is_due: Whether the next batch is to be the one of the state that was restored.
    """

    def __init__(self, backup: RamBackup, *, is_on: bool) -> None:
        self._backup = backup
        self.is_on = is_on
        self.cancel()

    def cancel(self) -> None:
        """Check nothing more of what was restored."""
        self.is_due = False
        self._slot: Slot | None = None
        self._drawn = -1
        self._losses: list[float] = []

    def note(self, draw: int, indices: NDArray[np.int64], loss: float) -> None:
        """Note a good loss of batch number ``draw``; the first one after a backup is kept with it."""
        self._backup.note_first(draw, indices, loss)

    def begin(self, step: int) -> None:
        """Check the backup of a step, which was just restored, if the first batch after it is known."""
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
            What was seen, for people, "" as long as nothing can be said; and whether the model must be put back
            again, as the loss has not repeated.
        """
        slot = self._slot
        if slot is None or draw != self._drawn:
            # A batch that was drawn before has changed the weights, or training goes on.
            self.cancel()
            return "", False
        self._losses.append(loss)
        named = (
            f"the first batch after the backup of step {slot.step}, whose loss was {slot.loss!r}, was trained on again"
        )
        if _equal(loss, slot.loss):
            self.cancel()
            return f"{named} and had the same loss: the backup and the computer are as they were then.", False
        if len(self._losses) < 2:
            self.is_due = True
            return "", True
        first, second = self._losses
        self.cancel()
        if _equal(first, second):
            return (
                f"{named} and had another loss, twice the same ({second!r}): the backup in memory, or what computes "
                "with it, is not as it was. Look at the memory and the hardware.",
                True,
            )
        return (
            f"{named} and had another loss each time ({first!r}, {second!r}): training is not deterministic, so this "
            "says nothing of memory or hardware.",
            True,
        )


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=0.0)
