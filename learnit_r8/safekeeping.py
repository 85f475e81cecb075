"""Safekeeping: takes backups and writes checkpoints when they are due, and puts the model back."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from . import events
from .backup import Reach
from .budget import Budget
from .callbacks import call_save
from .checkpoint import Checkpoint
from .keeping import Keeping
from .ladder import Descent
from .loading import read_from
from .restoring import Restored, Restoring
from .triggers import Elapsed


class Safekeeping(Keeping):
    """Takes backups and writes checkpoints when they are due, and puts the model back.

    Everything it is made of is in `Keeping`.
    """

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
        self._asked = (step, samples, seconds)
        if self.callbacks.state is not None:
            damage = self._backing_up.take_if_due(elapsed, draws, self.callbacks.state, get_moment)
        if self.saves and self.saves.is_due(elapsed, epoch_ended=epoch_ended, run_ended=run_ended):
            self.saves.attempt(lambda: self._write(get_state()), step)
        self._rest(elapsed, budget)
        return damage

    def _rest(self, asked: Elapsed, budget: Budget) -> None:
        """Find out until when nothing is due."""
        untils = [] if self.callbacks.state is None else [self._backing_up.quiet_until(asked)]
        if self.saves is not None:
            untils.append(self.saves.quiet_until(asked))
        if untils:
            untils.append((budget.steps or math.inf, budget.seconds or math.inf))
        self.quiet_steps = min((steps for steps, _ in untils), default=math.inf)
        self.quiet_seconds = min((seconds for _, seconds in untils), default=math.inf)

    def count_from(self, step: int, samples: int, seconds: float) -> None:
        """Count from here: the run was resumed."""
        self._asked = (step, samples, seconds)
        self.wake()
        self._backing_up.count_from(step)
        if self.saves:
            self.saves.count_from(step)

    def look_at_weights(self) -> None:
        """Take a backup, which looks at every number, as soon as the user's step is complete."""
        self._backing_up.look_soon()
        self.wake()

    def take_backup(self, state: Any, step: int, draws: int, moment: Any = None) -> str:
        """Copy a model state to RAM if all of it is finite; see `BackingUp.take`."""
        return self._backing_up.take(state, step, draws, moment)

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
        self._loading.hand_over(checkpoint, self.callbacks.load)
        self.backup.clear()
        self.wake()
        if self.saves is not None:
            self.saves.go_on_from(checkpoint)
        self._loading.put_back(checkpoint, has_callback=self.callbacks.load is not None)

    def is_built_otherwise(self, checkpoint: Checkpoint, name: str) -> bool:
        """Whether the run of a checkpoint had another value of an argument, as far as it says."""
        return self._loading.is_built_otherwise(checkpoint, name)

    def tell_loaded(self) -> None:
        """Tell listeners of a checkpoint that was put back, once the run has started."""
        if self.saves is not None:
            self.saves.claim()
        self._loading.tell()

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
        descent: Descent | None = None,
        failures: list[str] | None = None,
    ) -> Restored | None:
        """Put the model back; None without anything to put back. See `Restoring.restore`.

        Args:
            reach: See there.
            draws: See there.
            descent: See there.
            failures: Gets the reason of every state that could not be put back.

        Raises:
            RestoreError: the load callback raised for everything there was.
            RuntimeError: the load callback called the scheduler.
        """
        return self._restore(lambda restoring: restoring.restore(reach, draws=draws, descent=descent), failures)

    def return_to(self, source: str, step: int, *, draws: int) -> Restored | None:
        """Put the model back to the state that an incident restored first; see `Restoring.return_to`."""
        return self._restore(lambda restoring: restoring.return_to(source, step, draws=draws), None)

    def _restore(self, restore: Callable[[Restoring], Restored | None], failures: list[str] | None) -> Restored | None:
        if self.callbacks.load is None:
            return None
        restoring = Restoring(
            self.callbacks.load,
            backup=self.backup,
            store=self.store,
            damage=lambda: self._backing_up.damage_of(self.callbacks.state),
            agree=self.agree,
            announcer=self._announcer,
        )
        self.is_restoring = True
        try:
            return restore(restoring)
        finally:
            self.is_restoring = False
            self.wake()
            if failures is not None:
                failures += restoring.failures
