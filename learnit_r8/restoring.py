"""Restoring: puts a model state back through the load callback, and makes sure that it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import events
from .announcer import Announcer
from .backup import RamBackup, Reach, Slot
from .callbacks import call_load
from .checkpoint import Checkpoint, CheckpointStore


class RestoreError(RuntimeError):
    """The load callback raised for every state there was; the model may be half restored."""


class Restored(NamedTuple):
    """Where the model was put back to.

    Attributes:
        step: Steps reported when that state was taken.
        source: "backup", or the checkpoint's name.
        moment: What was kept with a backup; None for a checkpoint.
        guard: What a checkpoint says of the guard; None for a backup.
        forget: Whether what was reported since may be of damaged weights.
    """

    step: int
    source: str
    moment: Any = None
    guard: dict[str, Any] | None = None
    forget: bool = False


class _Source(NamedTuple):
    """A state that could be put back: ``get`` returns what the callback is given."""

    where: Restored
    get: Callable[[], Any]
    slot: Slot | None


class Restoring:
    """Tries one state after the other until one is back.

    Attributes:
        failures: Why states could not be put back.

    Args:
        load: ``(source, from_ram)``: the user's load callback.
        backup: The states in RAM.
        store: The checkpoints; None without.
        damage: Returns the name of an array of the live model that is not finite, "" if there is none or nobody knows.
        announcer: Who is told.
        agree: Makes what went wrong in one process that of all that train together; "" if nothing did.
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

    def restore(self, reach: Reach, *, draws: int, tries: int = 1, before: int | None = None) -> Restored | None:
        """Put the model back.

        Args:
            reach: How far to go back among the backups.
            draws: Batches drawn so far.
            tries: How often in this incident; without a backup every try takes an older checkpoint.
            before: Try checkpoints first, the newest with no more steps than this; None for backups first.

        Returns:
            Where it was put back to; None if there is nothing, or nothing that was finite afterwards.

        Raises:
            RestoreError: the load callback raised for everything there was.
        """
        for source in self._sources(reach, tries, before):
            if self._try(source):
                if source.slot is not None:
                    self._backup.went_back_to(source.slot, draws=draws)
                elif before is not None:
                    self._backup.clear()
                if reach is not Reach.NEWEST:
                    self._backup.unsettle()
                return source.where._replace(forget=reach is not Reach.NEWEST)
        if self._errors:
            causes = " | ".join(str(error) for error in self._errors)
            raise RestoreError(f"{causes} The model may be half restored.") from self._errors[0]
        return None

    def _sources(self, reach: Reach, tries: int, before: int | None) -> Iterator[_Source]:
        if before is not None:
            yield from self._checkpoints(0, before)
        slots = self._backup.options(reach)
        for slot in slots:
            where = Restored(slot.step, "backup", slot.moment)
            yield _Source(where, lambda slot=slot: self._backup.copy_of(slot).state, slot)  # type: ignore[misc]
        if before is None:
            yield from self._checkpoints(0 if slots else tries - 1, None)

    def _checkpoints(self, back: int, before: int | None) -> Iterator[_Source]:
        """The newest checkpoint after leaving out ``back`` ones and those of later steps; the oldest if all are."""
        checkpoint = self._own(back)
        while checkpoint is not None and before is not None and _step_of(checkpoint) > before:
            back += 1
            older = self._own(back)
            if older is None or older.path == checkpoint.path:
                break
            checkpoint = older
        if checkpoint is not None:
            where = Restored(_step_of(checkpoint), checkpoint.path.name, None, checkpoint.state["guard"])
            path = str(checkpoint.model_path)
            yield _Source(where, lambda: path, None)

    def _own(self, back: int) -> Checkpoint | None:
        return None if self._store is None else self._store.load_own(back)

    def _try(self, source: _Source) -> bool:
        """Put one state back; whether it is there and finite."""
        trouble = ""
        try:
            call_load(self._load, source.get(), from_ram=source.slot is not None)
        except RuntimeError as error:
            self._errors.append(error)
            trouble = str(error)
        damaged = "" if trouble else self._damage()
        if damaged:
            trouble = f"{damaged!r} was not finite afterwards: does load_callback put it back?"
        trouble = self._agree(trouble)
        return not trouble or self._failed(source, trouble)

    def _failed(self, source: _Source, reason: str) -> bool:
        where = source.where
        self.failures.append(f"{where.source} of step {where.step}: {reason}")
        self._announcer.tell(events.RestoreFailed, to_step=where.step, source=where.source, reason=reason)
        return False


def _step_of(checkpoint: Checkpoint) -> int:
    return int(checkpoint.state["pace"]["step"])
