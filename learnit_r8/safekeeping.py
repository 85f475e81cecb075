"""Safekeeping: the user's callbacks, the RAM backup and the checkpoints, and when each is due."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import copies, events
from .announcer import Announcer
from .backup import RamBackup, Reach
from .callbacks import call_load, call_save, check_callback
from .checkpoint import Checkpoint, CheckpointStore
from .checks import whole_number
from .restoring import Restored, Restoring
from .resume import IDENTITY, SAID, differences
from .saves import Saves
from .triggers import Condition, Elapsed, as_trigger, every, never

DEFAULT_FOLDER = "checkpoints"
LEAST_BACKUP_STEPS = 10


@dataclass(frozen=True)
class Callbacks:
    """What the user handed in.

    Attributes:
        save: ``(state_dict, filepath)`` or ``(filepath)``: writes the model.
        load: ``(source)``, ``(source, from_ram=)``: puts a model state back, from a path or a backup.
        state: ``()``: returns the model state for a backup.

    Raises:
        TypeError: one is neither callable nor None.
    """

    save: Callable[..., Any] | None = None
    load: Callable[..., Any] | None = None
    state: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("save", "load", "state"):
            check_callback(f"{name}_callback", getattr(self, name))


class Safekeeping:
    """Takes backups and writes checkpoints when they are due, and puts the model back.

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
        for name, value in (("checkpoint_every", checkpoint_every), ("monitor", monitor)):
            if value is not None and folder is None:
                raise ValueError(f"{name} needs a checkpoint_dir or a save_callback, got {value!r} without.")
        if folder is not None and not (isinstance(folder, (str, os.PathLike)) and os.fspath(folder)):
            raise ValueError(f"checkpoint_dir must name a folder, got {checkpoint_dir!r}.")
        self.callbacks = callbacks
        self._announcer = announcer
        self.backup = RamBackup()
        self._meant_infinite: set[str] | None = None
        self._is_backup_due = False
        # Where several processes train together they must do the same; this makes the trouble of one that of all.
        self.agree: Callable[[str], str] = str
        self.is_restoring = False
        self._config = dict(config or {})
        self._pending: Checkpoint | None = None
        self._loaded: Checkpoint | None = None
        if backup_every is None:
            self._backup_every: Condition = every(time=30) | every(max(LEAST_BACKUP_STEPS, steps_per_epoch // 4))
        else:
            self._backup_every = as_trigger("backup_every", backup_every)
        self._asked = (0, 0, 0.0)
        self._step_of_backup = 0
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
    def has_work(self) -> bool:
        """Whether backups or checkpoints are ever due by themselves."""
        return self.callbacks.state is not None or self.saves is not None

    @property
    def has_something(self) -> bool:
        """Whether there is a model state to go back to."""
        return not self.backup.is_empty or (self.store is not None and self.store.has_own)

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
            self._backup_every = as_trigger("backup_every", backup_every)
        if clone is not None:
            self.backup.copy_with(clone, copy_into)
        if self._pending is not None and self.callbacks.load is not None:
            self._load_model(self._pending)

    def between_steps(
        self,
        step: int,
        samples: int,
        seconds: float,
        draws: int,
        *,
        epoch_ended: bool,
        run_ended: bool,
        get_state: Callable[[], dict[str, Any]],
        get_moment: Callable[[], Any] = lambda: None,
    ) -> str:
        """Take a backup and write a checkpoint, if they are due.

        Args:
            step: Steps reported so far.
            samples: Samples in them.
            seconds: Training seconds so far.
            draws: Batches drawn so far.
            epoch_ended: Whether an epoch has ended since the last call.
            run_ended: Whether the budget is used up.
            get_state: Returns the scheduler's state.
            get_moment: Returns what to keep with a backup.

        Returns:
            The name of an array of the model that is not finite, if that was seen; else "".
        """
        damage = ""
        elapsed = Elapsed(step, samples, seconds, *self._asked)
        self._asked = (step, samples, seconds)
        if self.callbacks.state is not None:
            due = self._is_backup_due = self._backup_every(elapsed) or self._is_backup_due
            if self.backup.is_empty or (due and step != self._step_of_backup and self.backup.is_calm()):
                damage = self._back_up(self.callbacks.state, step, draws, get_moment)
        if self.saves and self.saves.is_due(elapsed, epoch_ended=epoch_ended, run_ended=run_ended):
            self.saves.attempt(lambda: self._write(get_state()), step)
        return damage

    def count_from(self, step: int, samples: int, seconds: float) -> None:
        """Count from here: the run was resumed."""
        self._asked = (step, samples, seconds)
        self._step_of_backup = step
        if self.saves:
            self.saves.count_from(step)

    def look_at_weights(self) -> None:
        """Take a backup, which looks at every number, as soon as the user's step is complete."""
        self._is_backup_due = True

    def _back_up(self, get: Callable[[], Any], step: int, draws: int, get_moment: Callable[[], Any]) -> str:
        """Take a backup by the state callback; what that raises is the user's to know."""
        self._is_backup_due = False
        self._step_of_backup = step
        state = get()
        if state is None:
            raise TypeError("state_callback must return the state of the model, got None.")
        return self.take_backup(state, step, draws, get_moment())

    def take_backup(self, state: Any, step: int, draws: int, moment: Any = None) -> str:
        """Copy a model state to RAM if all of it is finite; see `RamBackup.offer`.

        Returns:
            The name of an array that is not finite, then nothing was taken; else "".

        Raises:
            TypeError: it cannot be copied.
        """
        self._step_of_backup = step
        damaged = self.agree(self._damage_in(state))
        if damaged:
            self._announcer.tell(events.DamageFound, array=damaged)
            return damaged
        try:
            self.backup.offer(state, step=step, draws=draws, moment=moment)
        except MemoryError:
            self._announcer.warn_once(
                "no memory", f"there was no memory for the backup at step {step}; the one before is kept."
            )
            return ""
        self._announcer.tell(events.BackupTaken)
        return ""

    def _damage_in(self, state: Any) -> str:
        """The name of an array with NaN, or with infinities that were not there in the first state; "" without."""
        bad = copies.not_finite(state)
        if self._meant_infinite is None:
            # A mask of attention is made of -inf.
            self._meant_infinite = {key for key, has_nan in bad.items() if not has_nan}
        return next((key for key, has_nan in bad.items() if has_nan or key not in self._meant_infinite), "")

    def _damage_of_model(self) -> str:
        """`_damage_in` the live model; "" where nobody can tell."""
        if self.callbacks.state is None:
            return ""
        try:
            return self._damage_in(self.callbacks.state())
        except Exception:
            # The next backup will say what is wrong with it.
            return ""

    def save(self, state: dict[str, Any], step: int) -> Checkpoint:
        """Write a checkpoint.

        Raises:
            RuntimeError: there is no folder for it.
            OSError: the disk refused.
        """
        if self.saves is None:
            raise RuntimeError(
                f"checkpoint_dir or save_callback must be given to save checkpoints, got {self.store!r} and None."
            )
        return self.saves.write(lambda: self._write(state), step)

    def _write(self, state: dict[str, Any]) -> Checkpoint:
        assert self.store is not None
        write_model = None
        save = self.callbacks.save
        if save is not None:
            given = {"scheduler": state, "model": self._model_state()}
            write_model = functools.partial(call_save, save, given)
        saved = self.store.save(state, write_model, self._config)
        model_path = None if saved.model_path is None else str(saved.model_path)
        self._announcer.tell(events.CheckpointSaved, path=str(saved.path), model_path=model_path)
        if save is not None and model_path is None:
            self._announcer.note_once("no model file", "save_callback left no file: checkpoints hold no model.")
        return saved

    def save_as_asked(self, get_state: Callable[[], dict[str, Any]], step: int) -> None:
        """Write a checkpoint because somebody asked for it, unless there is one of this step."""
        if self.saves is None:
            self._announcer.note_once("no folder", "no checkpoint was saved: neither checkpoint_dir nor save_callback.")
        elif not self.saves.has_saved(step):
            self.saves.attempt(lambda: self._write(get_state()), step)

    def note(self, metrics: Mapping[str, float], at_step: int, step: int) -> None:
        """Hear of logged metrics; see `Saves.note`."""
        if self.saves is not None:
            self.saves.note(metrics, at_step, step)

    def summary(self) -> str:
        """What became of the checkpoints, for people: one line."""
        if self.saves is None:
            return "no checkpoints: neither checkpoint_dir nor save_callback"
        best = self.saves.best
        kept = "" if best is None else f"; best so far: {best.path.name} of step {best.step} ({best.value:.4g})"
        failed = f"; the last one failed: {self.saves.last_error}" if self.saves.last_error else ""
        return f"checkpoints failed: {self.saves.num_failed}{failed}{kept}"

    def _model_state(self) -> Any:
        if self.callbacks.state is not None:
            return self.callbacks.state()
        return self.backup.newest.state if self.backup.newest else None

    def load(self, path: str | os.PathLike[str] | None) -> Checkpoint:
        """Read a checkpoint and hand its model file to the load callback.

        Raises:
            RuntimeError: no path and no folder is known.
            ValueError: it cannot be used; nothing was changed.
        """
        store = self.store
        if store is None:
            if path is None:
                raise RuntimeError(f"path must be given where there is no checkpoint_dir, got {path!r}.")
            store = CheckpointStore(Path(path).parent, keep=1, run_id="")
        return store.load(path)

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Hand a checkpoint's model file to the load callback, if there are both; forget backups of other steps.

        Without a load callback the model waits for `adopt`.

        Raises:
            RuntimeError: the load callback raised; nothing else was changed.
        """
        self._pending = checkpoint if checkpoint.model_path is not None else None
        if self._pending is not None and self.callbacks.load is not None:
            self._load_model(checkpoint)
        self.backup.clear()
        if self.saves is not None:
            self.saves.go_on_from(checkpoint)
        self._loaded = checkpoint
        if checkpoint.model_path is None and self.callbacks.load is not None:
            self._announcer.warn_once(
                "no model in checkpoint",
                f"{checkpoint.path.name} holds no model, so load_callback was not called: the model is as you made it.",
            )
        others = differences(checkpoint.config, self._config, IDENTITY)
        if others:
            self._announcer.warn_once("differences", f"the resumed run is not built as it was: {'; '.join(others)}.")

    def is_built_otherwise(self, checkpoint: Checkpoint, name: str) -> bool:
        """Whether the run of a checkpoint had another value of an argument, as far as it says."""
        return bool(differences(checkpoint.config, self._config, (name,)))

    def _load_model(self, checkpoint: Checkpoint) -> None:
        assert self.callbacks.load is not None
        self._pending = None
        call_load(self.callbacks.load, str(checkpoint.model_path), from_ram=False)

    def tell_loaded(self) -> None:
        """Tell listeners of a checkpoint that was put back, once the run has started."""
        checkpoint, self._loaded = self._loaded, None
        if checkpoint is not None:
            self._announcer.tell(
                events.CheckpointLoaded,
                path=str(checkpoint.path),
                model_path=None if checkpoint.model_path is None else str(checkpoint.model_path),
                skipped=checkpoint.skipped,
                differences=tuple(differences(checkpoint.config, self._config, IDENTITY + SAID)),
            )
        if self._pending is not None:
            self._announcer.warn_once(
                "model not loaded",
                f"there is no load_callback, so the model is as you made it; the saved one is in "
                f"{str(self._pending.model_path)!r}.",
            )

    def restore(
        self,
        reach: Reach = Reach.GOOD,
        *,
        draws: int = 0,
        tries: int = 1,
        before: int | None = None,
        failures: list[str] | None = None,
    ) -> Restored | None:
        """Put the model back; None without anything to put back. See `Restoring.restore`.

        Args:
            reach: Likewise.
            draws: Likewise.
            tries: Likewise.
            before: Likewise.
            failures: Gets the reason of every state that could not be put back.

        Raises:
            RestoreError: the load callback raised for everything there was.
            RuntimeError: the load callback called the scheduler.
        """
        if self.callbacks.load is None:
            return None
        restoring = Restoring(
            self.callbacks.load,
            backup=self.backup,
            store=self.store,
            damage=self._damage_of_model,
            agree=self.agree,
            announcer=self._announcer,
        )
        self.is_restoring = True
        try:
            return restoring.restore(reach, draws=draws, tries=tries, before=before)
        finally:
            self.is_restoring = False
            if failures is not None:
                failures += restoring.failures
