"""Backup timer: takes backups of the model when they are due, and checks that every number in them is finite."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .. import events
from ..checkpoint.tree import fill, not_finite
from ..events.bus import Announcer
from ..triggers import Condition, Elapsed, every, quiet_until
from .agreement import Agreement
from .ram_backup import RamBackup

MOST_LASTING = 8
"""Times that an array may be damaged without a refused batch before that is taken as intended."""

LEAST_BACKUP_STEPS = 10

LEAST_GROWTH = 1 / 8
"""Least share by which the steps so far grow from one backup to the next: the most that cheap ones let damage undo."""

DOUBLING_SECONDS, TIME_SHARE = 0.1, 0.01
"""What backups may take while the steps double: so many seconds, or this share of the time so far."""

NO_MEMORY = 2**62
"""Stands for the microseconds of a backup for which there was no memory."""


def usual_interval(steps_per_epoch: int) -> Condition:
    """When to take backups at the latest if the user has not said when."""
    return every(time=30) | every(max(LEAST_BACKUP_STEPS, steps_per_epoch // 4))


class BackupTimer:
    """Takes backups with the state callback.

    Args:
        when: When they are due.
        announcer: Receives warnings and events.
        backup: Stores the states.
        agreement: Shares a failure on one rank with all ranks, and what backups take.
        is_usual: Whether the user has not said when.

    Attributes:
        backup: As given.
        when: As given.
        is_usual: As given; then early backups come, too, while the run is young and they are cheap.
        is_early: Whether the last backup was such a one.
        clean_step: Steps reported when every number of the model was last found finite; -1 before that.
        meant: Names of what is not finite on purpose.
    """

    def __init__(
        self, when: Condition, announcer: Announcer, backup: RamBackup, agreement: Agreement | None = None, *,
        is_usual: bool = False,
    ) -> None:  # fmt: skip
        self.backup = backup
        self.when, self.is_usual, self.is_early = when, is_usual, False
        self.clean_step = -1
        self.meant: set[str] = set()
        self._agreement = agreement or Agreement()
        self._announcer = announcer
        self._is_first = True
        self._num_lasting: dict[str, int] = {}
        self._is_due = False
        self._step, self._seconds = 0, 0.0
        # What the last backups took, the longest of all ranks. The shortest counts, as anything may delay one of them.
        self._took: deque[float] = deque(maxlen=3)

    @property
    def _early_step(self) -> float:
        """Where an early backup is due: the steps so far have grown by the least share, or by more if it is costly."""
        most = max(DOUBLING_SECONDS, TIME_SHARE * self._seconds)
        growth = max(LEAST_GROWTH, min(self._took, default=0.0) / most)
        if not self.is_usual or growth > 1:
            return math.inf
        return self._step + max(1, math.ceil(growth * self._step))

    def count_from(self, step: int) -> None:
        """Note that the run was resumed at this step, which needs no backup."""
        self._step = step

    def look_soon(self) -> None:
        """Take a backup, which checks every number, as soon as the user's step is complete."""
        self._is_due = True

    def take_in(self, get: Callable[[], Any] | None) -> None:
        """Store the initial state of a resumed run, once there is a live one whose form it takes."""
        first = self.backup.earlier
        if get is None or first is None:
            return
        shortage, self.backup.earlier = "", None
        try:
            # What no file can hold is that of the live state.
            first.state = None if first.state is None else self.backup.copy(fill(first.state, get()))
        except MemoryError:
            shortage = "no memory"
        # On all ranks, which must watch the first steps alike.
        if not self._agreement.agree(shortage):
            self.backup.backups.insert(0, first)

    def quiet_until(self, asked: Elapsed) -> tuple[float, float]:
        """Steps and seconds before which no backup is due; ``asked`` is the last `take_if_due` call."""
        if self._is_due or self.backup.has_none_of_now:
            return 0.0, 0.0
        steps, seconds = quiet_until(self.when, asked)
        return min(steps, self._early_step), seconds

    def take_if_due(
        self, elapsed: Elapsed, draws: int, get: Callable[[], Any], get_moment: Callable[[], Any], *, is_calm: bool
    ) -> str:
        """Take a backup with the state callback if one is due; exceptions of the callback reach the user.

        Args:
            elapsed: The run's position, now and at the previous call.
            draws: Batches drawn so far.
            get: The state callback.
            get_moment: Returns the scheduler's `Moment` to keep with a backup.
            is_calm: Whether nothing is suspected; otherwise a backup waits, unless there is none at all.

        Returns:
            The name of a non-finite array; no backup was taken then. Otherwise "".

        Raises:
            TypeError: the callback returned None, or a state that cannot be copied.
        """
        step = elapsed.steps
        newest = self.backup.newest
        if step != self._step and newest is not None and newest.step == step:
            # The call that took it was interrupted before it could note so.
            self.note_done(step)
        self._is_due = (step != self._step and bool(self.when(elapsed))) or self._is_due
        awaits = self.backup.awaits_witness
        is_early = not self._is_due and step >= self._early_step and not awaits
        waits = awaits and len(self.backup.backups) > 1
        is_now = (self._is_due or is_early) and step != self._step and is_calm and not waits
        is_first = self.backup.has_none_of_now
        if not (is_first or is_now):
            return ""
        self.is_early = is_early and not is_first
        self._seconds, began = elapsed.time, time.perf_counter()
        try:
            state = get()
            if state is None:
                raise TypeError("state_callback must return the state of the model, got None.")
            return self.take(state, step, draws, get_moment, began=began)
        except Exception:
            self.note_done(step)
            raise

    def note_done(self, step: int) -> None:
        """Note that nothing more is due at this step; call it last, so that what was cut short is due again."""
        self._is_due = False
        self._step = step

    def take(
        self, state: Any, step: int, draws: int, get_moment: Callable[[], Any] = lambda: None, *,
        began: float | None = None,
    ) -> str:  # fmt: skip
        """Copy a model state to RAM if all of it is finite; see `RamBackup.offer`. Measures the time since ``began``.

        Returns:
            The name of a non-finite array, if there is one and no backup was taken; otherwise "".

        Raises:
            TypeError: the state cannot be copied.
        """
        damaged = self._agreement.agree(self.damage_in(state))
        if damaged:
            # Due again until it is answered.
            self._announcer.tell(events.DamageFound, array=damaged)
            return damaged
        self.clean_step = step
        taken, took = None, NO_MEMORY
        began = time.perf_counter() if began is None else began
        try:
            taken = self.backup.offer(state, step=step, draws=draws, moment=get_moment())
            took = int(1e6 * (time.perf_counter() - began))
        except MemoryError:
            pass
        took = self._agreement.most(took)
        if took == NO_MEMORY:
            # On all ranks, which must go back to the same step later.
            if taken is not None:
                self.backup.backups.remove(taken)
            self.note_done(step)
            self._announcer.warn_once(
                "no memory", f"there was no memory for the backup at step {step}; the previous one is kept."
            )
            return ""
        self._took.append(1e-6 * took)
        self.note_done(step)
        self._announcer.tell(events.BackupTaken)
        return ""

    def damage_in(self, state: Any) -> str:
        """The name of an array with NaN, or of what is not finite and was so in no first state; "" if there is none."""
        bad = not_finite(state)
        if self._is_first:
            # Attention masks hold -inf on purpose, and a value that is not known yet is NaN.
            self._is_first = False
            self.meant = {key for key, fault in bad.items() if fault != "NaN"}
        return next((key for key in bad if key not in self.meant), "")

    def note_lasting(self, name: str) -> None:
        """Note an array that is damaged again, although no batch was refused since its repair.

        After some times it is taken as intended, with a warning.
        """
        self._num_lasting[name] = self._num_lasting.get(name, 0) + 1
        if self._num_lasting[name] == MOST_LASTING:
            self.meant.add(name)
            self._announcer.warn_once(
                f"meant {name}",
                f"{name!r} in the model's state is not finite again and again, whatever is done; it is no longer "
                "checked. If it is meant to hold NaN or infinities, leave it out of the state.",
            )

    def forget_lasting(self) -> None:
        """Count the damage of `note_lasting` from 0 again."""
        self._num_lasting.clear()

    def damage_now(self, get: Callable[[], Any] | None) -> str:
        """The name of a damaged array of the live model on any rank, "" if there is none or that cannot be checked."""
        return self._agreement.agree(self.damage_of(get))

    def damage_of(self, get: Callable[[], Any] | None) -> str:
        """As `damage_now`, of this rank alone."""
        try:
            return "" if get is None else self.damage_in(get())
        except Exception:
            # The next backup raises the callback's error.
            return ""
