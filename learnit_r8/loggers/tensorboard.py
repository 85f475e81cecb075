"""A logger for TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from .. import events
from .background import Logger, alert_of, numbers_of, summary_writer


class TensorBoard(Logger):
    """Write numbers, settings and incidents for TensorBoard.

    A resumed run hides what an earlier session wrote after the step it goes on from.

    Args:
        folder: The log folder of this run.
        **options: Of `Logger`.

    Raises:
        ImportError: neither tensorboardX nor torch with tensorboard is installed.
    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        self._folder = os.fspath(folder)
        self._make = summary_writer("loggers.TensorBoard")
        self._writer: Any = None

    def write(self, event: events.Event) -> None:
        """Write an event."""
        if isinstance(event, events.RunStarted) or self._writer is None:
            self._open(event)
        step, numbers = numbers_of(event)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        alert = alert_of(event)
        if alert is not None:
            self._writer.add_text(f"r8/{alert[0]}", alert[1], event.step)

    def _open(self, event: events.Event) -> None:
        self.finish()
        self._writer = self._make(self._folder, purge_step=event.step + 1 if event.step else None)
        if isinstance(event, events.RunStarted):
            rows = "\n".join(f"    {name}: {value}" for name, value in event.settings.items())
            self._writer.add_text("r8/settings", rows, event.step)

    def finish(self) -> None:
        """Close the files."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
