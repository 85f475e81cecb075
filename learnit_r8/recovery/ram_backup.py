"""Backups in RAM: model states to restore, trusted once enough good losses have followed them.

Measured on 107 real divergences in benchmarks/divergences.py: when the alarm came, 34 % of the newest backups were
already damaged, but at most 2 % of those that 64 good losses had followed.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..checkpoint import state_tree

LEAST_HEALTHY = 4
"""Good losses after which a state may be restored for a spike, while none has passed its trial yet."""

LOOK_EVERY = 4
"""Good losses between two checks that the guard is calm; a suspicion lasts longer than that."""


class Backup(NamedTuple):
    """A copy of a model state.

    Attributes:
        state: The copy.
        step: Steps reported when it was taken.
        moment: The scheduler's own state at that time, as passed to `RamBackup.offer`.
    """

    state: Any
    step: int
    moment: Any = None


class Reach(enum.Enum):
    """How far to go back.

    NEWEST: as little as possible, to the newest state that a good loss has followed. For a non-finite loss without any
    earlier suspicion: the weights before it were good.
    GOOD: to the newest state that 64 good losses have followed. For a spike: damage is older than its alarm.
    OLDER: to an older state of that kind, if the good one did not help.
    """

    NEWEST = "newest"
    GOOD = "good"
    OLDER = "older"


@dataclass(eq=False)
class Slot:
    """A stored state.

    Attributes:
        state: The copy, which must not be changed.
        step: Steps reported when it was taken.
        draws: Batches drawn by then; only the losses of later ones are evidence about it.
        moment: The scheduler's own state at that time.
        healthy: Good losses of later batches.
        batch: int64[B], the samples of the first batch drawn after it; None if unknown.
        loss: The loss of that batch.
        lr: Learning rate at which it passed its trial; NaN before.
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
    """The stored states, None for those that are missing. Replaced as a whole, so that every change is atomic.

    Attributes:
        before: The second newest, until a good loss has followed the newest.
        newest: The newest.
        trial: The one on trial.
        good: The newest that has passed its trial.
        older: An older one that has.
        aside: One that is kept whatever is restored; it may also be one of the others.
    """

    before: Slot | None = None
    newest: Slot | None = None
    trial: Slot | None = None
    good: Slot | None = None
    older: Slot | None = None
    aside: Slot | None = None


NO_SLOTS = Slots()


class RamBackup:
    """Holds a few model states: the newest, one on trial, a good one, and an older good one.

    A loss is computed with the weights from *before* the update that follows it, and a divergence goes on for a while
    before anybody notices. So a state is on trial until ``trial_steps`` batches drawn later had good losses. A state
    offered meanwhile is kept as the newest, and is on trial next. With one more buffer to copy into, there are up to
    five copies.

    Args:
        clone: Makes an independent copy. The default copies arrays, tensors and nests of them, and everything else that
            `copy.deepcopy` copies.
        copy_into: ``(buffer, state)``: copies into an earlier copy that is no longer needed, and returns the copy.
            By default, the default ``clone`` reuses buffers and any other makes new copies.
        trial_steps: Good losses that make a state good, >= 1.
        older_steps: Least steps between the two good states.
        is_calm: Returns whether the guard suspects nothing; otherwise good losses are counted from zero again.

    Attributes:
        slots: The stored states.

    >>> backup = RamBackup()
    >>> weights = {"w": [1.0]}
    >>> backup.offer(weights, step=10, draws=11)
    >>> weights["w"][0] = 9.9
    >>> backup.restore()
    Backup(state={'w': [1.0]}, step=10, moment=None)
    """

    def __init__(
        self,
        clone: Callable[[Any], Any] = state_tree.clone,
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
        self._lent: Any = None
        self.slots = NO_SLOTS

    def lend(self, state: Any) -> None:
        """Leave the memory of a stored state alone, as another thread reads it; None once it has been read."""
        self._lent = state

    def add_proved(self, state: Any, *, step: int, draws: int, lr: float) -> None:
        """Store a state that has passed its trial in an earlier process; the oldest first."""
        slot = Slot(state, step, draws, None, healthy=self.trial_steps, lr=lr)
        self.slots = self.slots._replace(good=slot, older=self.slots.good)

    @property
    def proved(self) -> dict[int, float]:
        """Steps of the states that have passed their trial, with the rates at which they have."""
        return {slot.step: slot.lr for slot in (self.slots.good, self.slots.older) if slot is not None}

    def copy_with(self, clone: Callable[[Any], Any], copy_into: Callable[[Any, Any], Any] | None = None) -> None:
        """Copy with these functions from now on; see the class."""
        self._clone = clone
        self._copy_into = state_tree.copy_into if copy_into is None and clone is state_tree.clone else copy_into
        self._spares: list[Any] = []

    @property
    def has_moments(self) -> bool:
        """Whether there is a state with which the scheduler's own was kept."""
        return any(slot.moment is not None for slot in self.states())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore."""
        return self.slots.trial is None and self.slots.good is None

    @property
    def newest(self) -> Backup | None:
        """The newest state, whether it is good or not; not copied."""
        slot = self.slots.newest or self.slots.trial or self.slots.good
        return None if slot is None else Backup(slot.state, slot.step, slot.moment)

    def offer(self, state: Any, *, step: int, draws: int, moment: Any = None) -> None:
        """Copy a state.

        Args:
            state: The model state; anything ``clone`` can copy.
            step: Steps reported so far.
            draws: Batches drawn so far; the losses of later ones decide whether the state is good.
            moment: The scheduler's own state, returned with it.

        Raises:
            TypeError: it cannot be copied; the stored states are unchanged.
            MemoryError: there is no memory for a copy; the stored states are unchanged.
        """
        self.add(self.copied(state), step=step, draws=draws, moment=moment)

    def add(self, copy: Any, *, step: int, draws: int, moment: Any = None) -> None:
        """Store what `copied` returned; see `offer`."""
        slot = Slot(copy, step, draws, moment)
        before, newest, trial, *_ = slots = self.slots
        if trial is None or draws <= trial.draws:
            self.slots = slots._replace(trial=slot)
            self._recycle(trial)
        elif newest is not None and newest.healthy and slots.aside is None:
            # Kept until a good loss has followed its successor; then its memory is reused.
            self.slots = slots._replace(newest=slot, before=newest)
            self._recycle(before)
        else:
            self.slots = slots._replace(newest=slot)
            self._recycle(newest)

    def copied(self, state: Any) -> Any:
        """A copy of a state, for `add`; in memory that is no longer needed, where there is some."""
        if self._spares and self._copy_into is not None:
            # If this fails, the partly written buffer is not used again.
            return self._copy_into(self._spares.pop(), state)
        return self._clone(state)

    def _recycle(self, slot: Slot | None) -> None:
        if slot is None or slot.state is self._lent:
            return
        if slot is not self.slots.aside and self._copy_into is not None:
            self._spares.append(slot.state)

    def note_first(self, draw: int, indices: Any, loss: float) -> None:
        """Store the samples and loss of batch number ``draw`` with the state after which it was the first one drawn."""
        for slot in self.states():
            if slot.draws == draw and slot.batch is None:
                slot.batch, slot.loss = indices.copy(), loss

    def is_look_due(self, draw: int) -> bool:
        """Whether it matters for `confirm` of this batch that the guard is calm."""
        trial = self.slots.trial
        if trial is None or draw < trial.draws:
            return False
        return not (trial.healthy + 1) % LOOK_EVERY or trial.healthy + 1 >= self.trial_steps

    def confirm(self, draw: int, lr: float = math.nan, *, is_calm: bool | None = None) -> None:
        """Count a good loss for the states that were taken before its batch was drawn.

        Args:
            draw: Number of the batch.
            lr: Learning rate at which it was drawn.
            is_calm: Whether the guard suspects nothing; None to ask, where `is_look_due`.
        """
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
            self._look(trial, lr, is_calm=self.is_calm() if is_calm is None else is_calm)

    def _look(self, trial: Slot, lr: float, *, is_calm: bool) -> None:
        if not is_calm:
            self.unsettle()
        elif trial.healthy >= self.trial_steps:
            trial.lr = lr
            self._promote(trial)

    def unsettle(self) -> None:
        """Count good losses from zero again, as something was suspicious."""
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
            # Early in a run: the newest that some good losses have followed, rather than the oldest.
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
        """Keep the state of a step, if there is one, through all restores until `return_aside` or `drop_aside`."""
        self.drop_aside()
        aside = next((slot for slot in self.states() if slot.step == step), None)
        self.slots = self.slots._replace(aside=aside)

    def drop_aside(self) -> None:
        """Treat the state that was set aside like any other again."""
        aside = self.slots.aside
        if aside is None:
            return
        self.slots = self.slots._replace(aside=None)
        if aside not in self.states():
            self._recycle(aside)

    def return_aside(self, *, draws: int) -> Slot | None:
        """Make the state that was set aside a stored one again, and forget newer ones; None if there is none.

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
        """A fresh copy of a state, which a callback may change."""
        return Backup(self._clone(slot.state), slot.step, slot.moment)

    def went_back_to(self, slot: Slot, *, draws: int) -> None:
        """Forget the states newer than the restored one: they come from weights that were given up.

        Args:
            slot: The restored state, one of `options`.
            draws: Batches drawn so far; losses of those not reported yet are no evidence about it.
        """
        slot.draws = max(slot.draws, draws)
        self.forget_after(slot.step)

    def forget_after(self, step: int) -> None:
        """Forget the states that were taken after this step."""
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
        """Return a fresh copy of the best state and forget newer ones; None if there is none.

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
        self.slots = NO_SLOTS
        self._spares.clear()
