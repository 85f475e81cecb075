"""Backups in RAM: model states to go back to, trusted once losses have been good with them for a while.

Measured on 107 real divergences, as in benchmarks/divergences.py: of the newest backups 34 % were damaged already when
the alarm came, of those that had 64 good losses behind them 2 % or fewer.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import model_state

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
        lr: Learning rate with which it passed its trial; NaN before.
    """

    state: Any
    step: int
    draws: int
    moment: Any
    healthy: int = 0
    batch: Any = None
    loss: float = math.nan
    lr: float = math.nan


class Slots(NamedTuple):
    """The states that are kept, None where there is none; another tuple with every change, which is then one store.

    Attributes:
        before: The newest but one, until the newest has a good loss.
        newest: The newest.
        trial: On trial.
        good: Trusted.
        older: Trusted, and older.
        aside: Kept whatever is restored, and perhaps one of the others.
    """

    before: Slot | None = None
    newest: Slot | None = None
    trial: Slot | None = None
    good: Slot | None = None
    older: Slot | None = None
    aside: Slot | None = None


NO_SLOTS = Slots()


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

    Attributes:
        slots: What is kept.

    >>> backup = RamBackup()
    >>> weights = {"w": [1.0]}
    >>> backup.offer(weights, step=10, draws=11)
    >>> weights["w"][0] = 9.9
    >>> backup.restore()
    Backup(state={'w': [1.0]}, step=10, moment=None)
    """

    def __init__(
        self,
        clone: Callable[[Any], Any] = model_state.clone,
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
        self.slots = NO_SLOTS

    def copy_with(self, clone: Callable[[Any], Any], copy_into: Callable[[Any, Any], Any] | None = None) -> None:
        """Use these to copy from now on; see the class."""
        self._clone = clone
        self._copy_into = model_state.copy_into if copy_into is None and clone is model_state.clone else copy_into
        self._spares: list[Any] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore."""
        return self.slots.trial is None and self.slots.good is None

    @property
    def newest(self) -> Backup | None:
        """The newest state, not copied, whatever it was proven by."""
        slot = self.slots.newest or self.slots.trial or self.slots.good
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
        before, newest, trial, *_ = slots = self.slots
        if trial is None or draws <= trial.draws:
            self.slots = slots._replace(trial=slot)
            self._recycle(trial)
        elif newest is not None and newest.healthy and slots.aside is None:
            # It stands in until the first good loss of its successor; then its memory is used again.
            self.slots = slots._replace(newest=slot, before=newest)
            self._recycle(before)
        else:
            self.slots = slots._replace(newest=slot)
            self._recycle(newest)

    def _copied(self, state: Any) -> Any:
        if self._spares and self._copy_into is not None:
            # Should this fail, the buffer is half written and not used again.
            return self._copy_into(self._spares.pop(), state)
        return self._clone(state)

    def _recycle(self, slot: Slot | None) -> None:
        if slot is not None and slot is not self.slots.aside and self._copy_into is not None:
            self._spares.append(slot.state)

    def note_first(self, draw: int, indices: Any, loss: float) -> None:
        """Keep the samples and the loss of batch number ``draw`` with the state after which it was drawn first."""
        for slot in self.states():
            if slot.draws == draw and slot.batch is None:
                slot.batch, slot.loss = indices.copy(), loss

    def confirm(self, draw: int, lr: float = math.nan) -> None:
        """Count a good loss of batch number ``draw``, drawn at rate ``lr``, for the states taken before."""
        slots = self.slots
        before, newest, trial, _, _, _ = slots
        if trial is None or draw < trial.draws:
            return
        trial.healthy += 1
        if newest is not None and draw >= newest.draws:
            newest.healthy += 1
            if before is not None:
                self.slots = slots._replace(before=None)
                self._recycle(before)
        if not trial.healthy % LOOK_EVERY or trial.healthy >= self.trial_steps:
            self._look(trial, lr)

    def _look(self, trial: Slot, lr: float) -> None:
        if not self.is_calm():
            self.unsettle()
        elif trial.healthy >= self.trial_steps:
            trial.lr = lr
            self._promote(trial)

    def unsettle(self) -> None:
        """Count the good losses from here: something was not as it should be."""
        for slot in (self.slots.trial, self.slots.newest):
            if slot is not None:
                slot.healthy = 0

    def _promote(self, trial: Slot) -> None:
        before, newest, _, good, older, aside = self.slots
        if good is not None and (older is None or good.step - older.step >= self.older_steps):
            given_up, older = older, good
        else:
            given_up = good
        self.slots = Slots(None, None, newest, trial, older, aside)
        self._recycle(given_up)
        self._recycle(before)

    def options(self, reach: Reach = Reach.GOOD) -> list[Slot]:
        """The states to try in turn, the best one first."""
        before, newest, trial, good, older, _ = self.slots
        waiting = [slot for slot in (newest, before, trial) if slot is not None]
        trusted = [slot for slot in (good, older) if slot is not None]
        if reach is Reach.NEWEST:
            proven = [slot for slot in waiting if slot.healthy]
            return [*proven, *trusted, *(slot for slot in reversed(waiting) if not slot.healthy)]
        if not trusted:
            # Early in a run: the newest that was fine for some losses, and not the first of all.
            fine = [slot for slot in waiting if slot.healthy >= LEAST_HEALTHY]
            return [*fine, *(slot for slot in reversed(waiting) if slot not in fine)]
        return [*(reversed(trusted) if reach is Reach.OLDER else trusted), *reversed(waiting)]

    def states(self) -> list[Slot]:
        """All states, newest first."""
        before, newest, trial, good, older, _ = self.slots
        return [slot for slot in (newest, before, trial, good, older) if slot is not None]

    def is_good(self, slot: Slot) -> bool:
        """Whether a state has passed its trial."""
        return slot is self.slots.good or slot is self.slots.older

    def set_aside(self, step: int) -> None:
        """Keep the state of a step, if there is one, until `return_aside` or `drop_aside`, whatever is restored."""
        self.drop_aside()
        aside = next((slot for slot in self.states() if slot.step == step), None)
        self.slots = self.slots._replace(aside=aside)

    def drop_aside(self) -> None:
        """Keep the state that was set aside no longer than any other."""
        aside = self.slots.aside
        if aside is None:
            return
        self.slots = self.slots._replace(aside=None)
        if aside not in self.states():
            self._recycle(aside)

    def return_aside(self, *, draws: int) -> Slot | None:
        """Trust the state that was set aside as before, and forget newer ones; None if there is none.

        Args:
            draws: Batches drawn so far.
        """
        aside = self.slots.aside
        if aside is None:
            return None
        self.slots = self.slots._replace(aside=None)
        if aside in self.states():
            self.went_back_to(aside, draws=draws)
            return aside
        self.forget_after(aside.step)
        *_, good, older, _ = self.slots
        self.slots = self.slots._replace(good=aside, older=good)
        self._recycle(older)
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
        *_, good, older, aside = self.slots
        slots = self.states()[::-1]
        kept = [s for s in slots if s.step <= step]
        waiting = [s for s in kept if s is not older and s is not good]
        older = older if older in kept else None
        good = good if good in kept else None
        if good is None:
            good, older = older, None
        last = waiting[-1] if len(waiting) > 1 else None
        self.slots = Slots(None, last, waiting[0] if waiting else None, good, older, aside)
        for given_up in [*slots[len(kept) :], *waiting[1:-1]]:
            self._recycle(given_up)

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

    def undo(self, slots: Slots, healthy: tuple[int | None, int | None] | None) -> None:
        """Keep what was kept before a report: ``healthy`` are the good losses of the states on trial and newest."""
        if self.slots is not slots:
            self.forget_spares()
            self.slots = slots
        for slot, count in zip((slots.trial, slots.newest), healthy or (), strict=False):
            if slot is not None and count is not None:
                # It has passed no trial, and so no rate.
                slot.healthy, slot.lr = count, math.nan

    def forget_spares(self) -> None:
        """Copy into no earlier copy: one that was given up may be kept again."""
        self._spares.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.slots = NO_SLOTS
        self._spares.clear()
