"""Checkpoint saver: when a checkpoint is due, what happens if it cannot be written, and which one is the best."""

from __future__ import annotations

import contextlib
import json
import math
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import events
from ..events.bus import Announcer
from ..events.caller import warn
from ..triggers import Condition, Elapsed, quiet_until
from .callbacks import RankLost
from .early_stop import warn_not_logged
from .store import BackgroundWrite, Checkpoint, CheckpointStore

STEPS_BETWEEN_LOOKS = 16
"""Steps after which to look again whether a thread has written a checkpoint; several ranks exchange messages for it."""

STEPS_OF_EPOCHS = 10
"""Steps between two checkpoints of epochs that are a single step long, as those of a full batch."""

MOST_SKIPPED = 64
"""Most intervals between two attempts while saving fails."""


class BestCheckpoint(NamedTuple):
    """The checkpoint with the best value of the monitored metric.

    Attributes:
        path: The scheduler's file.
        model_path: The model's file; None without one.
        value: The metric's value.
        step: Steps reported when it was saved.
    """

    path: Path
    model_path: Path | None
    value: float
    step: int


class CheckpointSaver:
    """Writes checkpoints when they are due; a failed save causes a warning and never ends the run.

    Args:
        store: Where checkpoints are written.
        when: When they are due.
        each_epoch: Whether they are also due after every epoch.
        monitor: Name of the logged metric whose best checkpoint is kept; None for none.
        mode: "min" if lower is better, "max" if higher is.
        announcer: Receives warnings and events.

    Raises:
        ValueError: ``mode`` is unknown.

    Attributes:
        num_failed: Checkpoints that could not be written.
        last_error: Why the last attempt failed; "" if it succeeded.
        best: The best checkpoint so far; None if there is none.
    """

    def __init__(
        self, store: CheckpointStore, *, when: Condition, each_epoch: bool, monitor: str | None, mode: str,
        announcer: Announcer,
    ) -> None:  # fmt: skip
        self.store = store
        self.num_failed = 0
        self.last_error = ""
        self.best: BestCheckpoint | None = None
        self._when, self._each_epoch = when, each_epoch
        self._monitor, self._sign, self._mode = monitor, 1 if mode == "min" else -1, mode
        self._announcer = announcer
        self._num_failed_in_a_row = self._num_to_skip = 0
        self._newest: tuple[int, Path, Path | None] | None = None
        self._writing: tuple[int, BackgroundWrite] | None = None
        self._step_tried = 0
        self._value_to_pin: float | None = None
        self._step_to_pin = 0
        self._logged: set[str] = set()
        self._first_step = self._step_of_epoch = self._length_of_epoch = 0
        self._pid: int | None = None
        self._is_shared = False

    def claim(self) -> None:
        """Note that this process trains: processes forked from it later must not write its checkpoints."""
        self._pid = os.getpid()

    @property
    def _is_in_child(self) -> bool:
        return self._pid not in (None, os.getpid())

    def count_from(self, step: int) -> None:
        """Note that the run was resumed at this step, which needs no new checkpoint."""
        self._step_tried = self._first_step = self._step_of_epoch = step

    def look_again(self) -> None:
        """Let a checkpoint of this step be due although there is one."""
        self._step_tried = -1

    def has_saved(self, step: int) -> bool:
        """Whether there is a checkpoint of this step."""
        return self._newest is not None and self._newest[0] == step

    def share(self, store: CheckpointStore) -> None:
        """Write to this store from now on, on all ranks at the same step."""
        self.store = store
        self._is_shared = True

    @property
    def _must_pin(self) -> bool:
        """Whether a checkpoint is due because it is the best one; ranks ask for that, as only one knows the metrics."""
        return self._value_to_pin is not None and not self._is_shared

    def is_due(self, elapsed: Elapsed, *, epoch_ended: bool, run_ended: bool) -> bool:
        """Whether to write a checkpoint now.

        Args:
            elapsed: The run's position, now and at the previous call.
            epoch_ended: Whether an epoch has ended since the previous call.
            run_ended: Whether this is the last call.
        """
        due = self._when(elapsed)
        if epoch_ended and self._each_epoch and not due:
            # A call that was cut is repeated at the same step.
            if elapsed.steps != self._step_of_epoch:
                self._length_of_epoch = elapsed.steps - self._step_of_epoch
                self._step_of_epoch = elapsed.steps
            due = self._length_of_epoch > 1 or elapsed.steps - self._step_tried >= STEPS_OF_EPOCHS
        # A run that had finished before it was resumed logs nothing.
        if run_ended and elapsed.steps != self._first_step and self._monitor not in (None, *self._logged):
            warn_not_logged(self._announcer, str(self._monitor), self._logged)
        must_wait = run_ended or self._must_pin
        if self._writing is not None and not (must_wait or self._writing[1].is_done):
            # One after the other; the next is of a later step anyway.
            return False
        self.wait()
        if elapsed.steps == self._step_tried and not self._must_pin:
            return False
        # The best checkpoint must be of this very step, so it is tried even while others are skipped.
        if due and not run_ended and self._num_to_skip and not self._must_pin:
            self._num_to_skip -= 1
            return False
        return due or run_ended or self._must_pin

    def quiet_until(self, asked: Elapsed) -> tuple[float, float]:
        """Steps and seconds before which none is due unless an epoch ends; ``asked`` is the last `is_due` call."""
        if self._must_pin:
            return 0.0, 0.0
        steps, seconds = quiet_until(self._when, asked)
        return (steps if self._writing is None else min(steps, asked.steps + STEPS_BETWEEN_LOOKS)), seconds

    def wait(self) -> None:
        """Wait until the checkpoint that a thread is writing is complete; if it failed, warn."""
        if self._writing is not None:
            step, writing = self._writing
            self._writing = None
            if not self._is_in_child:
                self.attempt(writing.result, step)

    def attempt(self, write: Callable[[], Checkpoint | BackgroundWrite], step: int) -> None:
        """Write a checkpoint or begin to; if that fails, warn, let training continue and skip ever more of the next."""
        if self._is_in_child:
            self._step_tried = step
            self._announcer.warn_once("child", f"no checkpoint was saved at step {step}: {self._whose}.")
            return
        try:
            self.write(write, step)
        except RankLost:
            raise
        except Exception as error:
            # Whatever failed, the user's callback or the disk: the run is worth more than the file.
            self.num_failed += 1
            self._num_to_skip = min(2**self._num_failed_in_a_row, MOST_SKIPPED) - 1
            self._num_failed_in_a_row += 1
            self._value_to_pin = None
            self.last_error = f"{type(error).__name__}: {error}"
            again = f" The next {self._num_to_skip} are skipped." if self._num_to_skip else ""
            warn(
                f"the checkpoint at step {step} could not be written:\n{traceback.format_exc()}"
                f"Training continues.{again}"
            )

    def write(self, write: Callable[[], Checkpoint | BackgroundWrite], step: int) -> Checkpoint | None:
        """Write a checkpoint, and pin it if it is the best one.

        Returns:
            The checkpoint; None where a thread is writing it now.

        Raises:
            OSError: the write failed.
            RuntimeError: this process was forked from the one that trains.
            Exception: whatever the save callback raises.
        """
        if self._is_in_child:
            raise RuntimeError(f"save_checkpoint() must not be called at step {step}, {self._whose}.")
        self.wait()
        before, self._step_tried = self._step_tried, step
        try:
            saved = write()
        except BaseException as error:
            if not isinstance(error, Exception):
                # Interrupted, not failed: it is tried again.
                self._step_tried = before
            raise
        if not isinstance(saved, Checkpoint):
            self._writing = step, saved
            return None
        self._num_failed_in_a_row = self._num_to_skip = 0
        self.last_error = ""
        self._newest = step, saved.path, saved.model_path
        if self._value_to_pin is not None and (step == self._step_to_pin or self._is_shared):
            self._pin(self._value_to_pin)
        elif step > self._step_to_pin:
            # An incident was open at the step of the value: its model is gone, and no later step has it.
            self._value_to_pin = None
        return saved

    @property
    def _whose(self) -> str:
        return f"as process {self._pid} writes them, and this is {os.getpid()}, forked from it"

    def note(self, metrics: Mapping[str, float], at_step: int, step: int) -> bool:
        """Take logged metrics; if they are the best so far, pin the checkpoint of their step or let one be written.

        Args:
            metrics: Values by name.
            at_step: The step they belong to.
            step: The current step.

        Returns:
            Whether a checkpoint must be asked for, on all ranks.
        """
        self._logged |= metrics.keys()
        if self._is_in_child:
            return False
        value = math.nan if self._monitor is None else metrics.get(self._monitor, math.nan)
        if math.isnan(value) or (self.best is not None and self._sign * value >= self._sign * self.best.value):
            return False
        if self.has_saved(at_step):
            self._pin(value)
        elif at_step == step or (self._writing is not None and at_step == self._writing[0]):
            self._value_to_pin, self._step_to_pin = value, at_step
            return self._is_shared and self.store.folder is not None
        return False

    def _pin(self, value: float) -> None:
        assert self._newest is not None
        step, path, model_path = self._newest
        self._value_to_pin = None
        self.best = BestCheckpoint(path, model_path, value, step)
        about = {
            "run_id": self.store.run_id, "checkpoint": path.name, "model": model_path and model_path.name,
            "monitor": self._monitor, "mode": self._mode, "value": value, "step": step,
        }  # fmt: skip
        try:
            self.store.pin(path, json.dumps(about).encode())
        except OSError as error:
            self._announcer.warn_once(
                "best", f"the best checkpoint could not be recorded, so a resume will not find it: {error}"
            )
        self._announcer.tell(events.BestSaved, path=str(path), monitor=str(self._monitor), value=value)

    def summary(self) -> str:
        """One line of text: failures, and the best checkpoint."""
        best = self.best
        kept = "" if best is None else f"; best so far: {best.path.name} of step {best.step} ({best.value:.4g})"
        failed = f"; the last one failed: {self.last_error}" if self.last_error else ""
        return f"checkpoints failed: {self.num_failed}{failed}{kept}"

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Continue the run that wrote a checkpoint, including its best one up to there."""
        self.store.go_on_from(checkpoint)
        self._newest = None
        if checkpoint.model_state is None:
            self._newest = int(checkpoint.state["pace"]["step"]), checkpoint.path, checkpoint.model_path
        self.best = None
        # The one that `_pin` noted, if it is of this metric and mode.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = self.store.read_note()
            if (about["run_id"], about["monitor"], about["mode"]) == (self.store.run_id, self._monitor, self._mode):
                path, model_path = self.store.files_of(about["checkpoint"])
                self.best = BestCheckpoint(path, model_path, float(about["value"]), int(about["step"]))
        self.store.pin(None if self.best is None else self.best.path)


def check_folder(folder: Any, **needing: Any) -> None:
    """Raise ValueError unless the folder exists or can be made, and is given if any of ``needing`` is."""
    for name, value in needing.items():
        if value is not None and folder is None:
            raise ValueError(f"{name} needs a checkpoint_dir or a save_callback, got {value!r} without either.")
    if folder is not None and not (isinstance(folder, (str, os.PathLike)) and os.fspath(folder)):
        raise ValueError(f"checkpoint_dir must name a folder, got {folder!r}.")
    if folder is not None:
        path = Path(folder)
        nearest = next(filter(os.path.exists, (path, *path.parents)), path)
        if os.path.exists(nearest) and not os.path.isdir(nearest):
            raise ValueError(
                "checkpoint_dir must be a folder, or a path where one can be made, "
                f"got {folder!r}: {str(nearest)!r} is not a folder."
            )
