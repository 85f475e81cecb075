"""Keeping: the user's callbacks, and the parts that back up, save and load with them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .announcer import Announcer
from .backing_up import BackingUp
from .backup import RamBackup
from .callbacks import Callbacks
from .checkpoint import CheckpointStore
from .checks import whole_number
from .loading import Loading
from .saves import Saves
from .triggers import Condition, as_trigger, every, never

DEFAULT_FOLDER = "checkpoints"
LEAST_BACKUP_STEPS = 10


class Keeping:
    """What the user handed in for the bad day, and the parts that use it.

    Args:
        callbacks: What the user handed in.
        backup_every: When to take backups through the state callback, as `as_trigger` takes it; None for four
            times an epoch (at least 10 steps apart) and every 30 s.
        checkpoint_dir: Folder of the checkpoints; None for "checkpoints" if there is a save callback, else for none.
        checkpoint_every: When to write checkpoints, likewise; None for every epoch. One is written at the end too.
        keep: Checkpoints of this run to keep, >= 1.
        monitor: Name of the logged metric whose best checkpoint is kept besides; None for none.
        mode: "min" if lower is better, "max" if higher is.
        config: How the run was built, for its checkpoints.
        steps_per_epoch: Steps in an epoch.
        announcer: Who is told.

    Attributes:
        callbacks: As given; an adapter may have added its own.
        saves: When checkpoints are written; None without a folder.
        is_restoring: Whether the model is being put back now.
        quiet_steps: Nothing is due before so many steps, and
        quiet_seconds: before so many training seconds, but at the end of an epoch.

    Raises:
        ValueError: an interval that cannot be read, ``keep`` below 1, an unknown mode, or an interval or metric of
            something that is never done.
        TypeError: a callback that is not callable.
    """

    def __init__(
        self,
        callbacks: Callbacks,
        *,
        backup_every: int | str | Condition | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | str | Condition | None = None,
        keep: int = 3,
        monitor: str | None = None,
        mode: str = "min",
        config: Mapping[str, Any] | None = None,
        steps_per_epoch: int,
        announcer: Announcer,
    ) -> None:
        keep = whole_number("keep_checkpoints", keep, least=1)
        if backup_every is not None and callbacks.state is None:
            raise ValueError(
                f"backup_every needs a state_callback that returns the model state, got {backup_every!r} without."
            )
        folder = DEFAULT_FOLDER if checkpoint_dir is None and callbacks.save is not None else checkpoint_dir
        _check_folder(folder, checkpoint_every=checkpoint_every, monitor=monitor)
        self.callbacks = callbacks
        self._announcer = announcer
        self.is_restoring = False
        self._config = dict(config or {})
        if backup_every is None:
            backup_every = every(time=30) | every(max(LEAST_BACKUP_STEPS, steps_per_epoch // 4))
        self._backing_up = BackingUp(as_trigger("backup_every", backup_every), announcer)
        self._loading = Loading(self._config, announcer)
        self._asked = (0, 0, 0.0)
        self.wake()
        when = never if checkpoint_every is None else as_trigger("checkpoint_every", checkpoint_every)
        self.saves: Saves | None = None
        if folder is not None:
            self.saves = Saves(
                CheckpointStore(folder, keep=keep, run_id=uuid.uuid4().hex),
                when=when,
                each_epoch=checkpoint_every is None,
                monitor=monitor,
                mode=mode,
                announcer=announcer,
            )

    @property
    def backup(self) -> RamBackup:
        """The model states in RAM."""
        return self._backing_up.backup

    @property
    def clean_step(self) -> int:
        """Steps reported when every number of the model was last seen to be finite; -1 before that."""
        return self._backing_up.clean_step

    @property
    def backup_every(self) -> Condition:
        """When backups are due."""
        return self._backing_up.when

    @property
    def agree(self) -> Callable[[str], str]:
        """Makes the trouble of one process that of all that train together."""
        return self._backing_up.agree

    @agree.setter
    def agree(self, agree: Callable[[str], str]) -> None:
        self._backing_up.agree = agree

    def wake(self) -> None:
        """Ask again what is due: something has changed."""
        self.quiet_steps = self.quiet_seconds = 0.0

    @property
    def has_something(self) -> bool:
        """Whether there is a model state to go back to; every rank asks at the same place."""
        return not self.backup.is_empty or (self.store is not None and bool(self.store.own_states()))

    @property
    def store(self) -> CheckpointStore | None:
        """Where checkpoints go; None without any."""
        return None if self.saves is None else self.saves.store

    @store.setter
    def store(self, store: CheckpointStore) -> None:
        assert self.saves is not None
        self.saves.store = store

    def adopt(
        self,
        callbacks: Callbacks,
        *,
        backup_every: int | str | Condition | None = None,
        clone: Callable[[Any], Any] | None = None,
        copy_into: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        """Use these callbacks where the user handed in none: an adapter knows the model.

        Args:
            callbacks: What to use.
            backup_every: When to take backups from now on; None changes nothing.
            clone: How to copy model states from now on, see `RamBackup`; None changes nothing.
            copy_into: Likewise.

        Raises:
            ValueError: an interval that cannot be read.
        """
        own = self.callbacks
        self.callbacks = Callbacks(own.save or callbacks.save, own.load or callbacks.load, own.state or callbacks.state)
        if backup_every is not None:
            self._backing_up.when = as_trigger("backup_every", backup_every)
        if clone is not None:
            self.backup.copy_with(clone, copy_into)
        self.wake()
        self._loading.hand_over_pending(self.callbacks.load)

    def summary(self) -> str:
        """What became of the checkpoints, for people: one line."""
        if self.saves is None:
            return "no checkpoints: neither checkpoint_dir nor save_callback"
        best = self.saves.best
        kept = "" if best is None else f"; best so far: {best.path.name} of step {best.step} ({best.value:.4g})"
        failed = f"; the last one failed: {self.saves.last_error}" if self.saves.last_error else ""
        return f"checkpoints failed: {self.saves.num_failed}{failed}{kept}"


def _check_folder(folder: Any, **needing: Any) -> None:
    """Raise ValueError unless the folder is one or can be made, and is given if something given needs it."""
    for name, value in needing.items():
        if value is not None and folder is None:
            raise ValueError(f"{name} needs a checkpoint_dir or a save_callback, got {value!r} without.")
    if folder is not None and not (isinstance(folder, (str, os.PathLike)) and os.fspath(folder)):
        raise ValueError(f"checkpoint_dir must name a folder, got {folder!r}.")
    if folder is not None:
        path = Path(folder)
        nearest = next(filter(os.path.exists, (path, *path.parents)), path)
        if os.path.exists(nearest) and not os.path.isdir(nearest):
            raise ValueError(
                "checkpoint_dir must be a folder, or where one can be made, "
                f"got {folder!r}: {str(nearest)!r} is no folder."
            )
