"""The RAM backup: a model state to go back to, trusted once a loss has been good with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple


class Backup(NamedTuple):
    """A copy of a model state.

    Attributes:
        state: The copy.
        step: Steps reported when it was taken.
    """

    state: Any
    step: int


class RamBackup:
    """The last model state known to be good, and the one on trial.

    A loss is computed with the weights as they were *before* the update that follows it, so a state taken after an
    update is unproven until a batch drawn later has a good loss.

    Args:
        clone: Makes an independent copy; ``copy.deepcopy`` fits arrays, tensors and nests of them.

    >>> backup = RamBackup()
    >>> weights = {"w": [1.0]}
    >>> backup.offer(weights, step=10, draws=11)
    >>> weights["w"][0] = 9.9
    >>> backup.restore()
    Backup(state={'w': [1.0]}, step=10)
    """

    def __init__(self, clone: Callable[[Any], Any] = copy.deepcopy) -> None:
        self._clone = clone
        self._good: Backup | None = None
        self._trial: Backup | None = None
        self._trial_draws = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore."""
        return self._good is None and self._trial is None

    @property
    def newest(self) -> Backup | None:
        """The newest state, not copied, good or on trial."""
        return self._trial or self._good

    def offer(self, state: Any, *, step: int, draws: int) -> None:
        """Copy a state and put it on trial; nothing happens while another one is, unless no batch was drawn since.

        Args:
            state: The model state; anything ``clone`` can copy.
            step: Steps reported so far.
            draws: Batches drawn so far; a later one must prove the state.
        """
        if self._trial is not None and draws > self._trial_draws:
            return
        self._trial = Backup(self._clone(state), step)
        self._trial_draws = draws

    def confirm(self, draw: int) -> None:
        """Trust the state on trial if batch number ``draw``, whose loss was good, was drawn after it was taken."""
        if self._trial is not None and draw >= self._trial_draws:
            self._good, self._trial = self._trial, None

    def restore(self) -> Backup | None:
        """A fresh copy of the last good state, of the one on trial if none is good yet; None if there is neither."""
        if self._good is not None:
            self._trial = None
        chosen = self._good or self._trial
        return None if chosen is None else Backup(self._clone(chosen.state), chosen.step)
