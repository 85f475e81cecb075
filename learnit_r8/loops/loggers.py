"""Loggers: the metrics of every step to Weights & Biases or TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from ..loggers.libraries import needed, summary_writer
from .bars import shown_values
from .state import LoopState


class wandb_logger:
    """Send metrics, stateful metrics and losses of each step to Weights & Biases.

    Args:
        run: A run of yours, which stays open; by default one is begun and finished with the loop.
        **options: For ``wandb.init``.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        self._wandb: Any = None if run is not None else needed("wandb", "wandb", "wandb_logger()")
        self._given, self._options = run, options
        self._run: Any = run

    def on_start(self) -> None:
        """Begin a run, unless one was given."""
        if self._given is None:
            self._run = self._wandb.init(**self._options)

    def on_step(self, loop_state: LoopState) -> None:
        """Send what this step has logged."""
        values = shown_values(loop_state.logs)
        if values:
            self._run.log(values, step=loop_state.elapsed.steps)

    def on_end(self, loop_state: LoopState) -> None:
        """Send the remaining logs, and finish the run if this logger has started it."""
        self.on_step(loop_state)
        if self._given is None and self._run is not None:
            self._run.finish()
            self._run = None


wandb = wandb_logger


class tensorboard:
    """Write metrics, stateful metrics and losses of each step for TensorBoard.

    Args:
        folder: Where to, or a writer of yours with ``add_scalar`` (as tensorboardX has it), which stays open.

    Raises:
        ImportError: neither tensorboardX nor torch with tensorboard is installed.
    """

    def __init__(self, folder: str | os.PathLike[str] | Any) -> None:
        self._is_own = not hasattr(folder, "add_scalar")
        self._writer: Any = None if self._is_own else folder
        self._folder = folder
        self._make = summary_writer("tensorboard()") if self._is_own else None

    def on_start(self) -> None:
        """Open the writer."""
        if self._make is not None:
            self._writer = self._make(os.fspath(self._folder))

    def on_step(self, loop_state: LoopState) -> None:
        """Write what this step has logged."""
        for name, value in shown_values(loop_state.logs).items():
            self._writer.add_scalar(name, value, loop_state.elapsed.steps)

    def on_end(self, loop_state: LoopState) -> None:
        """Write the remaining logs, and close the writer if this logger has opened it."""
        if self._writer is not None:
            self.on_step(loop_state)
            if self._is_own:
                self._writer.close()
                self._writer = None
