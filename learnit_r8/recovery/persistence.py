"""Persistence: what is due, saved, loaded and restored, with the user's callbacks."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import events
from .._validation import whole_number
from ..checkpoint.callbacks import Callbacks, call_save
from ..checkpoint.model_loader import ModelLoader, read_from
from ..checkpoint.reader import Checkpoint
from ..checkpoint.saver import CheckpointSaver
from ..checkpoint.store import CheckpointStore
from ..events.bus import Announcer
from ..schedules.budget import Budget
from ..triggers import Condition, Elapsed, as_trigger, every, never
from .backup_timer import BackupTimer
from .ladder import RollbackDepth
from .ram_backup import RamBackup, Reach
from .restore import Restorer, RestoreResult

DEFAULT_FOLDER = "checkpoints"
LEAST_BACKUP_STEPS = 10


class Persistence:
    """Takes backups and writes checkpoints when they are due, and puts the model back, with the user's callbacks.

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
        backup: Where model states are kept in RAM.

    Attributes:
        callbacks: As given; an adapter may have added its own.
        saver: When checkpoints are written; None without a folder.
        is_restoring: Whether the model is being put back now.
        has_restored: Whether that was begun since somebody set this to false.
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
        backup: RamBackup | None = None,
    ) -> None:
        keep = whole_number("keep_checkpoints", keep, least=1)
        if backup_every is not None and callbacks.state is None:
            raise ValueError(
                f"backup_every needs a state_callback that returns the model state, got {backup_every!r} without."
            )
        folder = DEFAULT_FOLDER if checkpoint_dir is None and callbacks.save is not None else checkpoint_dir
        _check_folder(folder, checkpoint_every=checkpoint_every, monitor=monitor)
        self.callbacks = self._given = callbacks
        self._announcer = announcer
        self.is_restoring = self.has_restored = False
        self._config = dict(config or {})
        if backup_every is None:
            backup_every = every(time=30) | every(max(LEAST_BACKUP_STEPS, steps_per_epoch // 4))
        self._backup_timer = BackupTimer(as_trigger("backup_every", backup_every), announcer, backup or RamBackup())
        self._model_loader = ModelLoader(self._config, announcer)
        self._asked = (0, 0, 0.0)
        self.wake()
        when = never if checkpoint_every is None else as_trigger("checkpoint_every", checkpoint_every)
        self.saver: CheckpointSaver | None = None
        if folder is not None:
            self.saver = CheckpointSaver(
                CheckpointStore(folder, keep=keep, run_id=os.urandom(16).hex()),
                when=when,
                each_epoch=checkpoint_every is None,
                monitor=monitor,
                mode=mode,
                announcer=announcer,
            )

    @property
    def backup(self) -> RamBackup:
        """The model states in RAM."""
        return self._backup_timer.backup

    @property
    def clean_step(self) -> int:
        """Steps reported when every number of the model was last seen to be finite; -1 before that."""
        return self._backup_timer.clean_step

    @property
    def backup_every(self) -> Condition:
        """When backups are due."""
        return self._backup_timer.when

    @property
    def agree(self) -> Callable[[str], str]:
        """Makes the trouble of one process that of all that train together."""
        return self._backup_timer.agree

    def note_judging(self) -> None:
        """Note that a loss is about to be judged: nothing is restored for it yet."""
        self.has_restored = False

    def undo_restore(self) -> None:
        """Be as before a restore that was cut short, but for the model."""
        self.backup.forget_spares()
        self.is_restoring = False
        self.wake()

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
        return None if self.saver is None else self.saver.store

    def share(self, agree: Callable[[str], str], shared_store: Callable[[Any], Any]) -> None:
        """Act as one with the other ranks.

        Args:
            agree: Makes the trouble of one process that of all that train together.
            shared_store: Returns a store of checkpoints that only rank 0 writes to, given the own one.
        """
        self._backup_timer.agree_with(agree)
        if self.saver is not None:
            self.saver.write_to(shared_store(self.saver.store))

    def adopt(
        self,
        callbacks: Callbacks,
        *,
        backup_every: int | str | Condition | None = None,
        clone: Callable[[Any], Any] | None = None,
        copy_into: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        """Use these callbacks where the user handed in none: an adapter knows the model, and the last one is right.

        Args:
            callbacks: What to use.
            backup_every: When to take backups from now on; None changes nothing.
            clone: How to copy model states from now on, see `RamBackup`; None changes nothing.
            copy_into: Likewise.

        Raises:
            ValueError: an interval that cannot be read.
        """
        own = self._given
        self.callbacks = Callbacks(own.save or callbacks.save, own.load or callbacks.load, own.state or callbacks.state)
        if backup_every is not None:
            self._backup_timer.when = as_trigger("backup_every", backup_every)
        if clone is not None:
            self.backup.copy_with(clone, copy_into)
        self.wake()
        self._model_loader.hand_over_pending(self.callbacks.load)

    def between_steps(
        self,
        step: int,
        samples: int,
        seconds: float,
        draws: int,
        *,
        epoch_ended: bool,
        run_ended: bool,
        budget: Budget,
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
            budget: Of the run; something is due at its end.
            get_state: Returns the scheduler's state.
            get_moment: Returns what to keep with a backup.

        Returns:
            The name of an array of the model that is not finite, if that was seen; else "".
        """
        damage = ""
        elapsed = Elapsed(step, samples, seconds, *self._asked)
        asked = (step, samples, seconds)
        try:
            if self.callbacks.state is not None:
                damage = self._backup_timer.take_if_due(elapsed, draws, self.callbacks.state, get_moment)
            if self.saver and self.saver.is_due(elapsed, epoch_ended=epoch_ended, run_ended=run_ended):
                self.saver.attempt(lambda: self._write(get_state()), step)
        except Exception:
            self._asked = asked
            raise
        # Not before: what was interrupted is due again.
        self._asked = asked
        self._rest(elapsed, budget)
        return damage

    def _rest(self, asked: Elapsed, budget: Budget) -> None:
        """Find out until when nothing is due."""
        untils = [] if self.callbacks.state is None else [self._backup_timer.quiet_until(asked)]
        if self.saver is not None:
            untils.append(self.saver.quiet_until(asked))
        if untils:
            untils.append((budget.steps or math.inf, budget.seconds or math.inf))
        self.wake()
        self.quiet_seconds = min((seconds for _, seconds in untils), default=math.inf)
        self.quiet_steps = min((steps for steps, _ in untils), default=math.inf)

    def count_from(self, step: int, samples: int, seconds: float) -> None:
        """Count from here: the run was resumed."""
        self._asked = (step, samples, seconds)
        self.wake()
        self._backup_timer.count_from(step)
        if self.saver:
            self.saver.count_from(step)

    def look_at_weights(self) -> None:
        """Take a backup, which looks at every number, as soon as the user's step is complete."""
        self._backup_timer.look_soon()
        self.wake()

    def note_answered(self) -> None:
        """Note that something was done about the damage that was found."""
        self._backup_timer.answered()

    def take_backup(self, state: Any, step: int, draws: int, moment: Any = None) -> str:
        """Copy a model state to RAM if all of it is finite; see `BackupTimer.take`."""
        return self._backup_timer.take(state, step, draws, moment)

    def save(self, state: dict[str, Any], step: int) -> Checkpoint:
        """Write a checkpoint.

        Raises:
            RuntimeError: there is no folder for it.
            OSError: the disk refused.
        """
        if self.saver is None:
            raise RuntimeError(
                f"checkpoint_dir or save_callback must be given to save checkpoints, got {self.store!r} and None."
            )
        return self.saver.write(lambda: self._write(state), step)

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
        if self.saver is None:
            self._announcer.note_once("no folder", "no checkpoint was saved: neither checkpoint_dir nor save_callback.")
        elif not self.saver.has_saved(step):
            self.saver.attempt(lambda: self._write(get_state()), step)

    def note(self, metrics: Mapping[str, float], at_step: int, step: int) -> None:
        """Hear of logged metrics; see `CheckpointSaver.note`."""
        if self.saver is not None:
            self.saver.note(metrics, at_step, step)
            self.wake()

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
        return read_from(self.store, path)

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Hand a checkpoint's model file to the load callback, if there are both; forget backups of other steps.

        Without a load callback the model waits for `adopt`.

        Raises:
            RuntimeError: the load callback raised; nothing else was changed.
        """
        self._model_loader.hand_over(checkpoint, self.callbacks.load)
        self.backup.clear()
        self.wake()
        if self.saver is not None:
            self.saver.go_on_from(checkpoint)
        self._model_loader.put_back(checkpoint, has_callback=self.callbacks.load is not None)

    def is_built_otherwise(self, checkpoint: Checkpoint, name: str) -> bool:
        """Whether the run of a checkpoint had another value of an argument, as far as it says."""
        return self._model_loader.is_built_otherwise(checkpoint, name)

    def tell_loaded(self) -> None:
        """Tell listeners of a checkpoint that was put back, once the run has started."""
        if self.saver is not None:
            self.saver.claim()
        self._model_loader.tell()

    def is_sound(self) -> bool:
        """Whether every number of the model is seen to be finite; every rank asks at the same place."""
        if self.callbacks.state is None:
            return False
        return not self.agree(self._backup_timer.damage_of(self.callbacks.state, unknown="state_callback raised"))

    def restorable_steps(self) -> set[int]:
        """When the states that could be restored were taken, in steps reported; every rank calls it."""
        if self.callbacks.load is None:
            return set()
        steps = {slot.step for slot in self.backup.states()}
        return steps if self.store is None else steps | {step for _, step in self.store.own_states()}

    def restore(
        self,
        reach: Reach = Reach.GOOD,
        *,
        draws: int = 0,
        depth: RollbackDepth | None = None,
        failures: list[str] | None = None,
    ) -> RestoreResult | None:
        """Put the model back; None without anything to put back. See `Restorer.restore`.

        Args:
            reach: See there.
            draws: See there.
            depth: See there.
            failures: Gets the reason of every state that could not be put back.

        Raises:
            RestoreError: the load callback raised for everything there was.
            RuntimeError: the load callback called the scheduler.
        """
        return self._restore(lambda restorer: restorer.restore(reach, draws=draws, depth=depth), failures)

    def return_to(self, source: str, step: int, *, draws: int) -> RestoreResult | None:
        """Put the model back to the state that an incident restored first; see `Restorer.return_to`."""
        return self._restore(lambda restorer: restorer.return_to(source, step, draws=draws), None)

    def _restore(
        self, restore: Callable[[Restorer], RestoreResult | None], failures: list[str] | None
    ) -> RestoreResult | None:
        if self.callbacks.load is None:
            return None
        restorer = Restorer(
            self.callbacks.load,
            backup=self.backup,
            store=self.store,
            damage=lambda: self._backup_timer.damage_of(self.callbacks.state),
            agree=self.agree,
            announcer=self._announcer,
        )
        self.has_restored = self.is_restoring = True
        try:
            return restore(restorer)
        finally:
            self.is_restoring = False
            self.wake()
            if failures is not None:
                failures += restorer.failures

    def summary(self) -> str:
        """What became of the checkpoints, for people: one line."""
        if self.saver is None:
            return "no checkpoints: neither checkpoint_dir nor save_callback"
        best = self.saver.best
        kept = "" if best is None else f"; best so far: {best.path.name} of step {best.step} ({best.value:.4g})"
        failed = f"; the last one failed: {self.saver.last_error}" if self.saver.last_error else ""
        return f"checkpoints failed: {self.saver.num_failed}{failed}{kept}"


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
