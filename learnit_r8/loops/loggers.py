"""The logger of loops: the metrics of every step to Weights & Biases."""

from __future__ import annotations

from typing import Any

from ..loggers.libraries import import_needed
from .bars import shown_values
from .state import LoopState


class wandb:
    """Send metrics, stateful metrics and losses of each step to Weights & Biases.

    Args:
        run: Your own run, which stays open; by default the loop starts and finishes one.
        **options: For ``wandb.init``.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        self._wandb: Any = None if run is not None else import_needed("wandb", "wandb", "wandb()")
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
