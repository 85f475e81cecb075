"""Reader of the files of a run, which it does not trust: no link or pipe, no endless line, no field of another type."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..checkpoint.durable_io import open_regular
from ..events import Event, RunStarted, StepsDone
from ..events.codec import from_fields
from ..events.kinds import EVENTS

MOST_LINE_BYTES = 2**20
MOST_JSON_BYTES = 2**22
BLOCK_BYTES = 2**20
SCHEMA = 1
MOST_COUNT = 2**53
MOST_NUMBER = 4e38
"""Largest number of a loss: float32 ends there."""
MOST_SECONDS = 1e12


class Record(NamedTuple):
    """One line of a journal.

    Attributes:
        time: Wall time of writing, seconds since 1970.
        event: The event.
    """

    time: float
    event: Event


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, holds no JSON object, or is too large.
    """
    with open_regular(path) as file:
        content = file.read(MOST_JSON_BYTES + 1)
    if len(content) > MOST_JSON_BYTES:
        raise ValueError(f"{path.name} must have at most {MOST_JSON_BYTES} bytes, got more.")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path.name} must be nested less deeply, got JSON beyond the limit.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold a JSON object, got {str(value)[:40]!r}.")
    return value


class Lines:
    """Whole lines of a file that may grow: each `read` continues where the last one ended.

    A file that was replaced, or became shorter, is read from its beginning.

    Args:
        path: The file; it need not exist yet.
        offset: First byte to read; the rest of a line there is skipped.

    Attributes:
        size: Size of the file at the last `read`.
        num_restarts: Number of times that another file took its place.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.size = 0
        self.num_restarts = 0
        self._file: tuple[int, int] | None = None
        self._part = b""
        self._skipping = offset > 0

    def read(self, most_bytes: int = BLOCK_BYTES) -> list[bytes]:
        """The whole lines among the next bytes, without their ends; none at the end of the file.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is no regular file.
        """
        with open_regular(self.path) as file:
            self._follow(os.fstat(file.fileno()))
            file.seek(self.offset)
            block = file.read(most_bytes)
        self.offset += len(block)
        return self._split(block)

    @property
    def is_at_end(self) -> bool:
        """Whether the last `read` reached the end of the file."""
        return self.offset >= self.size

    @property
    def share_read(self) -> float:
        """Share of the file that was read, in [0, 1]."""
        return self.offset / self.size if self.size else 1.0

    def _follow(self, found: os.stat_result) -> None:
        file = (found.st_dev, found.st_ino)
        if (self._file not in (None, file)) or found.st_size < self.offset:
            self.offset, self._part, self._skipping = 0, b"", False
            self.num_restarts += 1
        self._file, self.size = file, found.st_size

    def _split(self, block: bytes) -> list[bytes]:
        *lines, rest = block.split(b"\n")
        if lines:
            lines[0] = self._part + lines[0]
            if self._skipping:
                del lines[0]
            self._part, self._skipping = b"", False
        self._part += rest
        if len(self._part) > MOST_LINE_BYTES:
            self._part, self._skipping = b"", True
        return [line for line in lines if len(line) <= MOST_LINE_BYTES]


class Parser:
    """Turns lines into records, and counts the others.

    Attributes:
        num_damaged: Number of lines that are not records: cut, garbled, of another type.
        num_unknown: Number of records of kinds that this version does not know.
    """

    def __init__(self) -> None:
        self.num_damaged = 0
        self.num_unknown = 0

    def parse(self, lines: Iterable[bytes]) -> list[Record]:
        """The records among some lines, in order."""
        return [record for record in map(self._record, lines) if record is not None]

    def _record(self, line: bytes) -> Record | None:
        try:
            fields = json.loads(str(line, "utf-8"))
            kind = fields["kind"]
            if kind == "Journal":
                return None
            if isinstance(kind, str) and kind not in EVENTS:
                self.num_unknown += 1
                return None
            when, event = float(fields["time"]), from_fields(fields)
            if not (math.isfinite(when) and _is_sane(event)):
                raise ValueError(when)
            return Record(when, event)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            self.num_damaged += bool(line)
            return None


def _is_sane(event: Event) -> bool:
    """Whether the counts and numbers of an event are in a range that its readers can compute with."""
    if not (event.step >= 0 and 0 <= event.seconds < MOST_SECONDS and all(map(_fits, vars(event).values()))):
        return False
    if isinstance(event, StepsDone):
        return event.num_steps >= 1 and event.samples >= 0 and event.epoch >= -1
    if isinstance(event, RunStarted):
        sizes = event.num_samples, event.batch_size, event.steps_per_epoch
        # Of the user's own batches they are not known.
        least = 0 if event.grows else min(event.num_samples, 1)
        return min(sizes) >= least >= 0 and (event.total_steps is None or event.total_steps >= 1)
    return True


def _fits(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return not MOST_NUMBER < abs(value) < math.inf
    if kind is int:
        return bool(-1 <= value < MOST_COUNT)
    if kind is tuple:
        return all(map(_fits, value))
    return kind is not dict or all(map(_fits, value.values()))


PREVIEW_HEAD_BYTES = 2**16
PREVIEW_TAIL_BYTES = 2**17
PREVIEW_PIECES = 48
PREVIEW_PIECE_BYTES = 2**12


def preview(path: Path, parser: Parser) -> tuple[list[Record], list[Record]] | None:
    """Records of a long file, from its beginning and pieces in between, and from its end; None for a short file.

    They suffice to draw the whole course of a run before all of it is read.

    Raises:
        OSError, ValueError: as `Lines.read`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= PREVIEW_HEAD_BYTES + PREVIEW_TAIL_BYTES + PREVIEW_PIECES * PREVIEW_PIECE_BYTES:
            return None
        lines: list[bytes] = _piece(file, 0, PREVIEW_HEAD_BYTES)
        between = range(
            PREVIEW_HEAD_BYTES,
            size - PREVIEW_TAIL_BYTES - PREVIEW_PIECE_BYTES,
            max(1, (size - PREVIEW_TAIL_BYTES - PREVIEW_HEAD_BYTES) // PREVIEW_PIECES),
        )
        for start in between:
            lines += _piece(file, start, PREVIEW_PIECE_BYTES)
        tail = _piece(file, size - PREVIEW_TAIL_BYTES, PREVIEW_TAIL_BYTES)
    return parser.parse(lines), parser.parse(tail)


def _piece(file: BinaryIO, start: int, num_bytes: int) -> list[bytes]:
    """Return the complete lines in a piece of a file."""
    file.seek(start)
    lines = file.read(num_bytes).split(b"\n")
    return lines[1 if start else 0 : -1]
