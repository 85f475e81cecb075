"""Restorer: puts a model state back through the load callback, and checks that it arrived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import events
from ..checkpoint.store import CheckpointStore
from ..events.bus import Announcer
from .ram_backup import Backup, RamBackup


class RestoreError(RuntimeError):
    """The load callback raised for every available state; the model may be partly restored."""


class Restorer:
    """Puts states back.

    Args:
        load: ``(source, from_ram)``: the user's load callback.
        backup: The states in RAM.
        store: The checkpoints; None without any.
        damage: Returns the name of a non-finite array of the live model; "" if there is none or it cannot be checked.
        announcer: Receives events.
        agree: Shares a failure on one rank with all ranks; "" stands for none.

    Attributes:
        failures: Why states could not be restored.
        guard: The guard's state in the checkpoint that was put back last; None for a backup.
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
        self._load, self._backup, self._store = load, backup, store
        self._damage, self._announcer, self._agree = damage, announcer, agree
        self.failures: list[str] = []
        self.guard: Any = None

    def name_of(self, backup: Backup) -> str:
        """ "backup", or the name of its checkpoint; "" for one that is gone."""
        if not backup.is_on_disk:
            return "backup"
        if self._store is None:
            return ""
        return next((name for name, step in self._store.own_states() if step == backup.step), "")

    def put(self, backup: Backup) -> bool:
        """Restore a backup; False if it is missing, cannot be loaded, or is not finite afterwards."""
        name = self.name_of(backup)
        if not backup.can_be_put:
            return False
        if not backup.is_on_disk:
            self.guard = None
            return self.put_state(self._backup.copy_of(backup).state, backup.step)
        checkpoint = self._store.load_named(name) if name and self._store is not None else None
        if checkpoint is None:
            return False
        self.guard = checkpoint.state["guard"]
        return self._put(str(checkpoint.model_path), backup.step, name, from_ram=False)

    def put_state(self, state: Any, step: int) -> bool:
        """Restore a state in RAM that is not used afterwards; ``step`` is only for messages."""
        return self._put(state, step, "backup", from_ram=True)

    def raise_failures(self) -> None:
        """Raise RestoreError if any state could not be restored."""
        if self.failures:
            raise RestoreError(f"{' | '.join(self.failures)} The model may be partly restored.")

    def _put(self, source: Any, step: int, name: str, *, from_ram: bool) -> bool:
        trouble = ""
        try:
            self._load(source, from_ram)
        except RuntimeError as error:
            trouble = str(error)
        damaged = "" if trouble else self._damage()
        if damaged:
            trouble = f"{damaged!r} was not finite afterwards: does load_callback restore it?"
        trouble = self._agree(trouble)
        if trouble:
            self.failures.append(f"{name} of step {step}: {trouble}")
            self._announcer.tell(events.RestoreFailed, to_step=step, source=name, reason=trouble)
        return not trouble
