"""Backups in RAM: model states to go back to, trusted once losses have been good with them for a while.

Measured on 107 real divergences (research/reliability.md, 1.5): of the newest backups 34 % were damaged already when
the alarm came, of those that had 64 good losses behind them 2 % or fewer.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import copies

LEAST_HEALTHY = 4
"""Good losses after which a state is restored for a spike while none has passed its trial yet."""

LOOK_EVERY = 4
"""Good losses between two looks at how calm the guard is; a suspicion takes longer than that to pass."""


class Backup(NamedTuple):
    """A copy of a model state.

    Attributes:
        state: The copy.
        step: Steps reported when it was taken.
        moment: What the scheduler remembered then.
    """

    state: Any
    step: int
    moment: Any = None


class Reach(enum.Enum):
    """How far to go back.

    NEWEST: as little as possible: the newest state with a good loss. For a loss that was not finite out of a clear
    sky: then the weights before it were good.
    GOOD: to the newest state that 64 good losses were seen with. For a spike: damage is older than its alarm.
    OLDER: to an older one of that kind, if the good one did not help.
    """

    NEWEST = "newest"
    GOOD = "good"
    OLDER = "older"


@dataclass(eq=False)
class Slot:
    """A state that is kept.

    Attributes:
        state: The copy; not to be changed.
        step: Steps reported when it was taken.
        draws: Batches drawn by then; only the losses of later ones say something about it.
        moment: What the scheduler remembered then.
        healthy: Good losses seen since.
        batch: int64[B], the samples of the first batch drawn after it; None if that is not known.
        loss: The loss of that batch.
    """

    state: Any
    step: int
    draws: int
    moment: Any
    healthy: int = 0
    batch: Any = None
    loss: float = math.nan


class RamBackup:
    """Some model states: the newest, one on trial, a good one, and an older good one.

    A loss is computed with the weights as they were *before* the update that follows it, and a training that goes
    wrong does so for a while before anybody can know. So a state is on trial until ``trial_steps`` batches drawn
    later had good losses. A state offered meanwhile is kept as the newest, and is on trial next. With one more to copy
    into, that is up to five copies.

    Args:
        clone: Makes an independent copy. The default copies arrays, tensors and nests of them, and all else that
            `copy.deepcopy` copies.
        copy_into: ``(buffer, state)``: the same, into an earlier copy that is no longer needed; returns the copy.
            By default that of ``clone`` if it is the default one, else every copy is new.
        trial_steps: Good losses that make a state good, >= 1.
        older_steps: Least steps between the two good states.
        is_calm: Tells whether the guard suspects nothing; while it does no loss counts.

    >>> backup = RamBackup()
    >>> weights = {"w": [1.0]}
    >>> backup.offer(weights, step=10, draws=11)
    >>> weights["w"][0] = 9.9
    >>> backup.restore()
    Backup(state={'w': [1.0]}, step=10, moment=None)
    """

    def __init__(
        self,
        clone: Callable[[Any], Any] = copies.clone,
        copy_into: Callable[[Any, Any], Any] | None = None,
        *,
        trial_steps: int = 64,
        older_steps: int = 512,
        is_calm: Callable[[], bool] = lambda: True,
    ) -> None:
        self.trial_steps = trial_steps
        self.older_steps = older_steps
        self.is_calm = is_calm
        self.copy_with(clone, copy_into)
        self._before: Slot | None = None
        self._newest: Slot | None = None
        self._trial: Slot | None = None
        self._good: Slot | None = None
        self._older: Slot | None = None
        self._aside: Slot | None = None

    def copy_with(self, clone: Callable[[Any], Any], copy_into: Callable[[Any, Any], Any] | None = None) -> None:
        """Use these to copy from now on; see the class."""
        self._clone = clone
        self._copy_into = copies.copy_into if copy_into is None and clone is copies.clone else copy_into
        self._spares: list[Any] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore."""
        return self._trial is None and self._good is None

    @property
    def newest(self) -> Backup | None:
        """The newest state, not copied, whatever it was proven by."""
        slot = self._newest or self._trial or self._good
        return None if slot is None else Backup(slot.state, slot.step, slot.moment)

    def offer(self, state: Any, *, step: int, draws: int, moment: Any = None) -> None:
        """Copy a state.

        Args:
            state: The model state; anything ``clone`` can copy.
            step: Steps reported so far.
            draws: Batches drawn so far; later ones must prove the state.
            moment: What to hand back with it.

        Raises:
            TypeError: it cannot be copied. What was kept before is kept.
            MemoryError: likewise.
        """
        slot = Slot(self._copied(state), step, draws, moment)
        if self._trial is None or draws <= self._trial.draws:
            self._recycle(self._trial)
            self._trial = slot
            return
        newest = self._newest
        if newest is not None and newest.healthy and self._aside is None:
            # It stands in until the first good loss of its successor; then its memory is used again.
            self._recycle(self._before)
            self._before = newest
        else:
            self._recycle(newest)
        self._newest = slot

    def _copied(self, state: Any) -> Any:
        if self._spares and self._copy_into is not None:
            # Should this fail, the buffer is half written and not used again.
            return self._copy_into(self._spares.pop(), state)
        return self._clone(state)

    def _recycle(self, slot: Slot | None) -> None:
        if slot is not None and slot is not self._aside and self._copy_into is not None:
            self._spares.append(slot.state)

    def note_first(self, draw: int, indices: Any, loss: float) -> None:
        """Keep the samples and the loss of batch number ``draw`` with the state after which it was drawn first."""
        for slot in self.states():
            if slot.draws == draw and slot.batch is None:
                slot.batch, slot.loss = indices.copy(), loss

    def confirm(self, draw: int) -> None:
        """Count a good loss of batch number ``draw`` for the states taken before it was drawn."""
        trial = self._trial
        if trial is None or draw < trial.draws:
            return
        trial.healthy += 1
        newest = self._newest
        if newest is not None and draw >= newest.draws:
            newest.healthy += 1
            if self._before is not None:
                self._recycle(self._before)
                self._before = None
        if not trial.healthy % LOOK_EVERY or trial.healthy >= self.trial_steps:
            self._look(trial)

    def _look(self, trial: Slot) -> None:
        if not self.is_calm():
            self.unsettle()
        elif trial.healthy >= self.trial_steps:
            self._promote(trial)

    def unsettle(self) -> None:
        """Count the good losses from here: something was not as it should be."""
        for slot in (self._trial, self._newest):
            if slot is not None:
                slot.healthy = 0

    def _promote(self, trial: Slot) -> None:
        good = self._good
        if good is not None and (self._older is None or good.step - self._older.step >= self.older_steps):
            self._recycle(self._older)
            self._older = good
        else:
            self._recycle(good)
        self._recycle(self._before)
        self._good, self._trial, self._newest, self._before = trial, self._newest, None, None

    def options(self, reach: Reach = Reach.GOOD) -> list[Slot]:
        """The states to try in turn, the best one first."""
        waiting = [slot for slot in (self._newest, self._before, self._trial) if slot is not None]
        good = [slot for slot in (self._good, self._older) if slot is not None]
        if reach is Reach.NEWEST:
            proven = [slot for slot in waiting if slot.healthy]
            return [*proven, *good, *(slot for slot in reversed(waiting) if not slot.healthy)]
        if not good:
            # Early in a run: the newest that was fine for some losses, and not the first of all.
            fine = [slot for slot in waiting if slot.healthy >= LEAST_HEALTHY]
            return [*fine, *(slot for slot in reversed(waiting) if slot not in fine)]
        return [*(reversed(good) if reach is Reach.OLDER else good), *reversed(waiting)]

    def states(self) -> list[Slot]:
        """All states, newest first."""
        slots = (self._newest, self._before, self._trial, self._good, self._older)
        return [slot for slot in slots if slot is not None]

    def is_good(self, slot: Slot) -> bool:
        """Whether a state has passed its trial."""
        return slot is self._good or slot is self._older

    def set_aside(self, step: int) -> None:
        """Keep the state of a step, if there is one, until `return_aside` or `drop_aside`, whatever is restored."""
        self.drop_aside()
        self._aside = next((slot for slot in self.states() if slot.step == step), None)

    def drop_aside(self) -> None:
        """Keep the state that was set aside no longer than any other."""
        aside, self._aside = self._aside, None
        if aside is not None and aside not in self.states():
            self._recycle(aside)

    def return_aside(self, *, draws: int) -> Slot | None:
        """Trust the state that was set aside as before, and forget newer ones; None if there is none.

        Args:
            draws: Batches drawn so far.
        """
        aside, self._aside = self._aside, None
        if aside is None or aside in self.states():
            if aside is not None:
                self.went_back_to(aside, draws=draws)
            return aside
        self.forget_after(aside.step)
        self._recycle(self._older)
        self._good, self._older = aside, self._good
        aside.draws = draws
        return aside

    def copy_of(self, slot: Slot) -> Backup:
        """A fresh copy of a state, for a callback to do with what it likes."""
        return Backup(self._clone(slot.state), slot.step, slot.moment)

    def went_back_to(self, slot: Slot, *, draws: int) -> None:
        """Forget the states newer than the one that was restored: they come from weights that were given up.

        Args:
            slot: One of `options`.
            draws: Batches drawn so far; the losses of those still out prove nothing.
        """
        slot.draws = max(slot.draws, draws)
        self.forget_after(slot.step)

    def forget_after(self, step: int) -> None:
        """Forget the states that were taken after so many steps."""
        slots = self.states()[::-1]
        kept = [s for s in slots if s.step <= step]
        for given_up in slots[len(kept) :]:
            self._recycle(given_up)
        waiting = [s for s in kept if s is not self._older and s is not self._good]
        self._older = self._older if self._older in kept else None
        self._good = self._good if self._good in kept else None
        for between in waiting[1:-1]:
            self._recycle(between)
        self._before = None
        self._trial = waiting[0] if waiting else None
        self._newest = waiting[-1] if len(waiting) > 1 else None
        if self._good is None and self._older is not None:
            self._good, self._older = self._older, None

    def restore(self, reach: Reach = Reach.GOOD, *, draws: int = 0) -> Backup | None:
        """A fresh copy of the best state; None if there is none. Newer ones are forgotten.

        Args:
            reach: How far to go back.
            draws: Batches drawn so far.
        """
        options = self.options(reach)
        if not options:
            return None
        chosen = self.copy_of(options[0])
        self.went_back_to(options[0], draws=draws)
        return chosen

    def clear(self) -> None:
        """Forget everything."""
        self._before = self._newest = self._trial = self._good = self._older = self._aside = None
        self._spares.clear()
