"""Backups: model states to go back to, each with its witness, the first batch that was trained on after it; and when
they are taken.

The loss of the witness was computed with exactly the weights of its backup. So drawing that batch again tells whether
other weights are as good.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .. import events
from ..checkpoint import tree
from ..events.bus import Announcer
from ..triggers import Condition, Elapsed, every, quiet_until
from .agreement import Agreement

LEVEL_LOSSES = 32
"""Losses before a backup from which its level and spread are computed."""

LEAST_LOSSES = 8
"""Losses that must be known for that."""

LEAST_SPREAD = 1e-3
"""Least spread of losses, as a share of their median."""

FAR_SPREADS = 6.0
"""Spreads of the losses before a backup, and at least their level once more, by which the loss of a bad batch is above
them. Other weights may have any loss on such a batch."""


class Moment(NamedTuple):
    """The scheduler's own state when a model state is copied, which goes back with the model.

    Later reports stay in the table, whether or not it has learned them already: that depends on when somebody last read
    the table, and reading must not change the run.

    Attributes:
        memory: The guard's state.
        trend: The trend of the losses, and whether estimates were differences from it.
        baseline: Number of baseline resets by then.
        updates: Updates that the weights had taken.
        recent: The last losses learned from.
        state: The state of the run except the table's records; a run that was cut short goes on from it.
    """

    memory: Any
    trend: tuple[float, bool]
    baseline: int
    updates: int
    recent: tuple[float, ...]
    state: Any = None


class Copy(NamedTuple):
    """A fresh copy of a stored state.

    Attributes:
        state: The copy.
        step: Steps reported when the state was taken.
        moment: The scheduler's own state at that time.
    """

    state: Any
    step: int
    moment: Moment | None = None


@dataclass(eq=False)
class Backup:
    """A state to go back to, in RAM or in a checkpoint.

    Attributes:
        step: Steps reported when it was taken.
        updates: Updates that its weights had taken.
        draws: Batches drawn by then; only the losses of later ones say anything about it.
        state: The copy, which must not be changed; None for a checkpoint, and where only the record is known.
        is_on_disk: Whether it is a checkpoint.
        is_of_file: Whether it is the initial state as the file of a resumed run knows it.
        moment: The scheduler's own state at that time; None for a checkpoint.
        recent: The last losses before it.
        witness: The batches of the first update after it, each as the plan draws it again: int64[B], or what the user's
            loader gave.
        losses: Their losses.
        generators: Random generators at the start of the witness; None where they cannot be set.
        is_closed: Whether its witness is complete, as the optimizer has taken its step with fewer batches.
        is_proven: Whether enough calm losses have followed, so that the record is that of healthy weights.
        replayed: The loss of the witness when it was drawn again; NaN before.
        noise: Difference of two of those losses, with the same weights; NaN where it was drawn again once at most.
    """

    step: int
    updates: int
    draws: int = 0
    state: Any = None
    moment: Moment | None = None
    recent: tuple[float, ...] = ()
    witness: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    generators: Any = None
    is_closed: bool = False
    is_proven: bool = False
    replayed: float = math.nan
    noise: float = math.nan
    is_on_disk: bool = False
    is_of_file: bool = False

    @property
    def can_be_put(self) -> bool:
        """Whether more than its record is known."""
        return self.state is not None or not self.is_of_file

    @property
    def record(self) -> float:
        """Mean loss of the witness; NaN before it is known."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan

    @functools.cached_property
    def level(self) -> float:
        """Median of the losses before it; NaN if there were too few."""
        last = self.recent[-LEVEL_LOSSES:]
        return float(np.median(last)) if len(last) >= LEAST_LOSSES else math.nan

    @functools.cached_property
    def spread(self) -> float:
        """Robust standard deviation of the losses before it."""
        return spread_of(self.recent[-LEVEL_LOSSES:])

    @property
    def usual(self) -> float:
        """The level of the losses before it, or where there were too few, that of its witness."""
        return self.level if self.level == self.level else self.record

    @property
    def is_typical(self) -> bool:
        """Whether its witness had a loss like those before it, as far as they are known."""
        far = max(FAR_SPREADS * self.spread, abs(self.level))
        return not self.record > self.level + far

    def to_plain(self) -> dict[str, Any]:
        """All but the state, for a saved state."""
        return {
            "step": self.step, "updates": self.updates, "recent": list(self.recent), "witness": list(self.witness),
            "losses": list(self.losses), "is_proven": self.is_proven,
        }  # fmt: skip

    @classmethod
    def from_plain(cls, saved: Mapping[str, Any]) -> Backup:
        """Make a backup of what `to_plain` returned; its state is in a checkpoint."""
        return cls(
            saved["step"], saved["updates"], recent=tuple(saved["recent"]),
            witness=[np.asarray(each, np.int64) for each in saved["witness"]], losses=list(saved["losses"]),
            is_proven=saved["is_proven"], is_on_disk=True,
        )  # fmt: skip

    def begin_anew(self, record: float = math.nan) -> None:
        """Take another record, as losses mean something else from here on; with NaN, probes say nothing any more."""
        self.losses, self.recent, self.is_proven = [record], (), False
        for name in ("level", "spread"):
            self.__dict__.pop(name, None)


def spread_of(losses: Sequence[float]) -> float:
    """Robust standard deviation of losses: 1.4826 times their median distance from the median; 0 for fewer than two."""
    if len(losses) < 2:
        return 0.0
    values = np.asarray(losses, np.float64)
    middle = float(np.median(values))
    return max(1.4826 * float(np.median(np.abs(values - middle))), LEAST_SPREAD * abs(middle))


class RamBackup:
    """Holds copies of model states: the first, the newest, and some between, the older the farther apart.

    Args:
        clone: Makes an independent copy. The default copies arrays, tensors and nests of them, and everything else that
            `copy.deepcopy` copies.
        copy_into: ``(buffer, state)``: copies into an earlier copy that is no longer needed, and returns the copy.
            By default, the default ``clone`` reuses buffers and any other makes new copies.
        most: Copies to hold, >= 2.

    Attributes:
        backups: Oldest first.
        earlier: What the file of a resumed run knows of its initial state, until `BackupTimer.take_in`.
        most: As given.
        witness_size: Batches in a witness: those whose gradients make one update.

    >>> backup = RamBackup()
    >>> weights = {"w": [1.0]}
    >>> _ = backup.offer(weights, step=10)
    >>> weights["w"][0] = 9.9
    >>> backup.copy_of(backup.newest)
    Copy(state={'w': [1.0]}, step=10, moment=None)
    """

    def __init__(
        self,
        clone: Callable[[Any], Any] = tree.clone,
        copy_into: Callable[[Any, Any], Any] | None = None,
        *,
        most: int = 7,
    ) -> None:
        self.backups: list[Backup] = []
        self.earlier: Backup | None = None
        self.most = most
        self.witness_size = 1
        self._lent: Any = None
        self.copy_with(clone, copy_into)

    def copy_with(self, clone: Callable[[Any], Any], copy_into: Callable[[Any, Any], Any] | None = None) -> None:
        """Copy with these functions from now on; see the class."""
        self._clone = clone
        self._copy_into = tree.copy_into if copy_into is None and clone is tree.clone else copy_into
        self._spares: list[Any] = []

    def lend(self, state: Any) -> None:
        """Leave the memory of a stored state alone, as another thread reads it; None once it has been read."""
        self._lent = state

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore."""
        return not any(backup.can_be_put for backup in self.backups)

    @property
    def has_none_of_now(self) -> bool:
        """Whether there is no state since the run was begun or resumed."""
        return all(backup.is_of_file for backup in self.backups)

    @property
    def has_moments(self) -> bool:
        """Whether there is a state with which the scheduler's own was kept."""
        return any(backup.moment is not None for backup in self.backups)

    @property
    def newest(self) -> Backup | None:
        """The newest state; None if there is none."""
        return self.backups[-1] if self.backups else None

    @property
    def awaits_witness(self) -> bool:
        """Whether the witness of the newest state is not complete."""
        if not self.backups:
            return False
        newest = self.backups[-1]
        return len(newest.witness) < self.witness_size and not newest.is_closed

    def end_update(self) -> None:
        """Take the witness of the newest state for complete: the optimizer has taken a step with fewer batches."""
        if self.backups and self.backups[-1].witness:
            self.backups[-1].is_closed = True

    def add(self, backup: Backup) -> None:
        """Store a state that an earlier process has copied, in its place."""
        self._keep(sorted([*self.backups, backup], key=lambda one: (one.updates, one.step)))

    def copy(self, state: Any) -> Any:
        """A copy of a state, in memory that is free where there is any.

        Raises:
            TypeError: it cannot be copied.
            MemoryError: there is no memory for a copy.
        """
        if self._spares and self._copy_into is not None:
            # If this fails, the partly written buffer is not used again.
            return self._copy_into(self._spares.pop(), state)
        return self._clone(state)

    def offer(self, state: Any, *, step: int, draws: int = 0, moment: Moment | None = None) -> Backup:
        """Copy a state and store it.

        Args:
            state: The model state; anything ``clone`` can copy.
            step: Steps reported so far.
            draws: Batches drawn so far.
            moment: The scheduler's own state, returned with it; None for an update each step.

        Raises:
            TypeError: it cannot be copied; the stored states are unchanged.
            MemoryError: there is no memory for a copy; the stored states are unchanged.
        """
        updates, recent = (step, ()) if moment is None else (moment.updates, moment.recent)
        backup = Backup(step, updates, draws, self.copy(state), moment, recent)
        # If nothing was trained on since the last one, that says nothing that this one does not.
        says_nothing = len(self.backups) > 1 and not self.backups[-1].witness
        self._keep([*self.backups[: -1 if says_nothing else None], backup])
        return backup

    def _keep(self, backups: list[Backup]) -> None:
        """Store these but for those whose neighbours are closest to each other, for their age; the first and the newest
        always.
        """
        while len(backups) > self.most:
            updates = [backup.updates for backup in backups]
            now = updates[-1]
            gaps = [(updates[n + 1] - updates[n - 1]) / (now - updates[n - 1] + 1) for n in range(1, len(updates) - 1)]
            del backups[1 + int(np.argmin(gaps[:-1] or gaps))]
        # At once, so that an interrupt leaves all of it undone, or nothing.
        before, self.backups = self.backups, backups
        for backup in before:
            if all(backup is not each for each in backups):
                self.recycle(backup)

    def recycle(self, backup: Backup) -> None:
        """Reuse the memory of a state that is no longer stored."""
        if backup.state is not None and backup.state is not self._lent and self._copy_into is not None:
            self._spares = [*self._spares, backup.state][-2:]

    def copy_of(self, backup: Backup) -> Copy:
        """A fresh copy of a state, which a callback may change."""
        return Copy(self._clone(backup.state), backup.step, backup.moment)

    def forget_after(self, updates: int) -> None:
        """Forget the states whose weights had taken more updates: they come from weights that were abandoned."""
        for backup in [each for each in self.backups if each.updates > updates]:
            self.backups.remove(backup)
            self.recycle(backup)

    def clear(self) -> None:
        """Forget all states."""
        self.backups = []
        self._spares = []


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
            first.state = None if first.state is None else self.backup.copy(tree.fill(first.state, get()))
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
        bad = tree.not_finite(state)
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
