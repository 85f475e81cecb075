"""Loggers that write files: CSV and JSON lines."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from .. import events
from ..checkpoint.durable_io import make_first_free, numbered, open_output, open_regular, replace
from ..events.codec import to_json
from .background import Logger, numbers_of

COLUMNS = ("step", "seconds", "name", "value")


class _File(Logger):
    """A file of lines that grows with the run.

    A resumed run removes the lines after the step it goes on from; a new run keeps the old file under another
    name.
    """

    header = ""

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        # A relative path must mean the same file after the program changes its working directory.
        self.path = Path(path).absolute()
        if self.path.is_dir():
            raise ValueError(f"path must be a file, got the folder {str(self.path)!r}.")
        self._stream: Any = None

    def _begin(self, step: int) -> None:
        self.finish()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file() and step:
            # A line cut short by a kill goes, too.
            kept = []
            with open_regular(self.path) as file:
                text = file.read().decode()
            for line in text.splitlines(keepends=True):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    if line.endswith("\n") and self._step_of(line) <= step:
                        kept.append(line)
            replace(self.path, "".join(kept).encode())
        elif self.path.is_file() and self.path.stat().st_size:
            names = numbered(self.path.with_suffix(""), self.path.suffix)
            self.path.replace(make_first_free(names, lambda path: os.close(open_output(path, "x"))))
        is_new = not self.path.is_file() or not self.path.stat().st_size
        self._stream = open(open_output(self.path, "a"), "a", encoding="utf-8", newline="")  # noqa: SIM115, until the run ends
        if is_new:
            self._stream.write(self.header)

    def _add(self, event: events.Event, text: str) -> None:
        if isinstance(event, events.RunStarted) or self._stream is None:
            self._begin(event.step)
        self._stream.write(text)
        self._stream.flush()

    def _step_of(self, line: str) -> int:
        raise NotImplementedError

    def finish(self) -> None:
        """Close the file."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class JsonLines(_File):
    """Write every event as a line of strict JSON, as `learnit_r8.events.codec.to_json` makes it; steps are condensed.

    Args:
        path: The file. See `docs/loggers.md` for what happens to one that is there.
        **options: Of `Logger`.

    Raises:
        ValueError: ``path`` is a folder.
    """

    def write(self, event: events.Event) -> None:
        """Write an event."""
        self._add(event, to_json(event) + "\n")

    def _step_of(self, line: str) -> int:
        return int(json.loads(line)["step"])


class CsvFile(_File):
    """Write every number as a row of step, seconds, name and value, so that later metrics need no new column.

    Args:
        path: The file. See `docs/loggers.md` for what happens to one that is there.
        **options: Of `Logger`.

    Raises:
        ValueError: ``path`` is a folder.
    """

    header = ",".join(COLUMNS) + "\n"

    def write(self, event: events.Event) -> None:
        """Write the numbers of an event."""
        step, numbers = numbers_of(event)
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerows((step, f"{event.seconds:.6g}", _cell(name), f"{value:.9g}") for name, value in numbers.items())
        self._add(event, text.getvalue())

    def _step_of(self, line: str) -> int:
        step = line.partition(",")[0]
        return int(step) if step.isdigit() else 0


def _cell(name: str) -> str:
    """Return a name in a form that no spreadsheet takes for a formula."""
    return "'" + name if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
