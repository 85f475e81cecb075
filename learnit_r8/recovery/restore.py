"""Restorer: puts a model state back through the load callback, and checks that it arrived."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import events
from ..checkpoint.callbacks import call_load
from ..checkpoint.store import CheckpointStore
from ..events.bus import Announcer
from .ladder import RollbackDepth, rollback_order
from .ram_backup import RamBackup, Reach, Slot


class RestoreError(RuntimeError):
    """The load callback raised for every available state; the model may be partly restored."""


class RestoreResult(NamedTuple):
    """The state that the model was restored to.

    Attributes:
        step: Steps reported when it was taken.
        source: "backup", or the checkpoint's name.
        moment: The `Moment` kept with a backup; None for a checkpoint.
        guard: The guard's state in a checkpoint; None for a backup.
        forget: Whether losses reported since may come from damaged weights.
        is_proven: Whether the state had passed its trial before.
        lr: Learning rate at which it passed; NaN if unknown.
    """

    step: int
    source: str
    moment: Any = None
    guard: dict[str, Any] | None = None
    forget: bool = False
    is_proven: bool = False
    lr: float = math.nan


class _Source(NamedTuple):
    """A state that can be restored: from RAM, or from the checkpoint of that name."""

    step: int
    slot: Slot | None
    name: str = ""


class Restorer:
    """Tries one state after another until one is restored.

    Attributes:
        failures: Why states could not be restored.

    Args:
        load: ``(source, from_ram)``: the user's load callback.
        backup: The states in RAM.
        store: The checkpoints; None without any.
        damage: Returns the name of a non-finite array of the live model; "" if there is none or it cannot be checked.
        announcer: Receives events.
        agree: Shares a failure on one rank with all ranks; "" stands for none.
    """

    def __init__(
        self,
        load: Callable[..., Any],
        *,
        backup: RamBackup,
        store: CheckpointStore | None,
        damage: Callable[[], str],
        announcer: Announcer,
        agree: Callable[[str], str] = str,
    ) -> None:
        self._load = load
        self._agree = agree
        self._backup = backup
        self._store = store
        self._damage = damage
        self._announcer = announcer
        self._errors: list[Exception] = []
        self.failures: list[str] = []

    def restore(self, reach: Reach, *, draws: int, depth: RollbackDepth | None = None) -> RestoreResult | None:
        """Restore the model.

        Args:
            reach: How far to go back among the backups, if this is the first restore of an incident.
            draws: Batches drawn so far.
            depth: How far the incident has gone back already; None for the first restore.

        Returns:
            The restored state; None if there is none, or none that was finite afterwards.

        Raises:
            RestoreError: the load callback raised for every state.
        """
        sources = self._first(reach) if depth is None else self._descending(depth)
        for source in sources:
            restored = self._try(source)
            if restored is None:
                continue
            is_deep = depth is not None or reach is not Reach.NEWEST
            if source.slot is None:
                self._backup.forget_after(source.step)
            else:
                self._backup.went_back_to(source.slot, draws=draws)
            if is_deep:
                self._backup.unsettle()
            return restored._replace(forget=is_deep)
        if self._errors:
            causes = " | ".join(str(error) for error in self._errors)
            raise RestoreError(f"{causes} The model may be partly restored.") from self._errors[0]
        return None

    def restore_backup(self, *, draws: int) -> RestoreResult:
        """Restore the newest backup that a good loss has followed, or else another one, of those made in this run.

        Args:
            draws: Batches drawn so far.

        Raises:
            RestoreError: none of them could be restored.
        """
        for slot in self._backup.options(Reach.NEWEST):
            restored = None if slot.moment is None else self._try(_Source(slot.step, slot))
            if restored is not None:
                self._backup.went_back_to(slot, draws=draws)
                return restored
        raise RestoreError(
            f"no backup could be restored: {' | '.join(self.failures)}. The model may be partly restored."
        )

    def return_to(self, name: str, step: int, *, draws: int) -> RestoreResult | None:
        """Restore the state that an incident restored first.

        Args:
            name: "backup", or the name of its checkpoint.
            step: Steps reported when it was taken.
            draws: Batches drawn so far.

        Returns:
            The restored state; None if it no longer exists or cannot be restored.
        """
        if name != "backup":
            return self._try(_Source(step, None, name))
        slot = self._backup.return_aside(draws=draws)
        return None if slot is None else self._try(_Source(slot.step, slot))

    def _first(self, reach: Reach) -> list[_Source]:
        """The backups that ``reach`` asks for, then the checkpoints older than all of them, then the other ones."""
        backups = [_Source(slot.step, slot) for slot in self._backup.options(reach)]
        oldest = min((source.step for source in backups), default=math.inf)
        return backups + sorted(self._checkpoints(), key=lambda checkpoint: checkpoint.step >= oldest)

    def _descending(self, depth: RollbackDepth) -> list[_Source]:
        """All states in rollback order; if a backup and a checkpoint are of the same step, the backup comes first."""
        backups = [_Source(slot.step, slot) for slot in self._backup.states()]
        both = sorted(backups + self._checkpoints(), key=lambda source: -source.step)
        return [both[place] for place in rollback_order([source.step for source in both], depth)]

    def _checkpoints(self) -> list[_Source]:
        """The checkpoints of this run with a model, newest first."""
        if self._store is None:
            return []
        return [_Source(step, None, name) for name, step in reversed(self._store.own_states())]

    def _try(self, source: _Source) -> RestoreResult | None:
        """Restore one state; None if it is missing, cannot be loaded or is not finite."""
        where, given = self._opened(source)
        if where is None:
            return None
        trouble = ""
        try:
            call_load(self._load, given, from_ram=source.slot is not None)
        except RuntimeError as error:
            self._errors.append(error)
            trouble = str(error)
        damaged = "" if trouble else self._damage()
        if damaged:
            trouble = f"{damaged!r} was not finite afterwards: does load_callback restore it?"
        trouble = self._agree(trouble)
        if trouble:
            self._failed(where, trouble)
            return None
        return where

    def _opened(self, source: _Source) -> tuple[RestoreResult | None, Any]:
        """The result if this state is restored, and the argument for the load callback; (None, None) if it is gone."""
        slot = source.slot
        if slot is not None:
            where = RestoreResult(slot.step, "backup", slot.moment, is_proven=self._backup.is_good(slot), lr=slot.lr)
            return where, self._backup.copy_of(slot).state
        assert self._store is not None
        checkpoint = self._store.load_named(source.name)
        if checkpoint is None:
            return None, None
        return RestoreResult(source.step, source.name, None, checkpoint.state["guard"]), str(checkpoint.model_path)

    def _failed(self, where: RestoreResult, reason: str) -> None:
        self.failures.append(f"{where.source} of step {where.step}: {reason}")
        self._announcer.tell(events.RestoreFailed, to_step=where.step, source=where.source, reason=reason)
