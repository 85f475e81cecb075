"""A run, read from its folder: its name, its processes and its events.

Its files are not trusted: no link or pipe, no endless line, no field of another type.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import json
import math
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import events
from .._validation import did_you_mean
from ..events.codec import from_fields, strict_json
from ..state.durable_io import open_regular, read_json, replace

MOST_LINE_BYTES = 2**20
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
    event: events.Event


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


def _is_sane(event: events.Event) -> bool:
    """Whether the counts and numbers of an event are in a range that its readers can compute with."""
    if not (event.step >= 0 and 0 <= event.seconds < MOST_SECONDS and all(map(_fits, vars(event).values()))):
        return False
    if isinstance(event, events.StepsDone):
        return event.num_steps >= 1 and event.samples >= 0 and event.epoch >= -1
    if isinstance(event, events.RunStarted):
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


class UnreadableRun(ValueError):
    """A folder holds no readable run; the message says why."""


class Run:
    """A run folder that is read step by step.

    Args:
        folder: The run folder.

    Raises:
        UnreadableRun: it is not a folder, or holds no journal.

    Attributes:
        folder: The run folder.
        lines: The journal, as far as it was read.
        num_damaged: Lines so far that are not records: cut, garbled, of another type; unknown kinds do not count.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.num_damaged = 0
        self.lines = Lines(self.folder / "events.jsonl")
        if not self.folder.is_dir():
            raise UnreadableRun(f"run must be a folder, got {str(folder)!r}.")
        with self._opening():
            self.lines.read(0)

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """Turn errors of opening the journal into UnreadableRun."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise UnreadableRun(f"run must hold a journal, got {str(self.folder)!r}: {error}") from None

    def about(self) -> dict[str, Any]:
        """See `read_about`."""
        return read_about(self.folder)

    @property
    def name(self) -> str:
        """Name of the run, else that of its folder."""
        name = self.about().get("name")
        return name if isinstance(name, str) and name else self.folder.name

    def glance(self) -> list[Record]:
        """Records for the whole course and the state: all of a short journal, of a long one its beginning, its end, and
        pieces in between, which suffice to draw it before all of it is read; see `poll`.
        """
        with self._opening(), open_regular(self.lines.path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > PREVIEW_HEAD_BYTES + PREVIEW_TAIL_BYTES + PREVIEW_PIECES * PREVIEW_PIECE_BYTES:
                tail = size - PREVIEW_TAIL_BYTES
                stride = max(1, (tail - PREVIEW_HEAD_BYTES) // PREVIEW_PIECES)
                starts = range(PREVIEW_HEAD_BYTES, tail - PREVIEW_PIECE_BYTES, stride)
                pieces = [(0, PREVIEW_HEAD_BYTES), *((start, PREVIEW_PIECE_BYTES) for start in starts)]
                lines: list[bytes] = []
                for start, num_bytes in (*pieces, (tail, PREVIEW_TAIL_BYTES)):
                    file.seek(start)
                    # Whole lines only.
                    lines += file.read(num_bytes).split(b"\n")[1 if start else 0 : -1]
                return self._parse(lines)
        return list(self.records())

    def poll(self) -> list[Record]:
        """The next block of records, empty at the end of the journal; UnreadableRun where the journal is gone."""
        with self._opening():
            return self._parse(self.lines.read())

    def _parse(self, lines: Iterable[bytes]) -> list[Record]:
        """The records among some lines, in order."""
        records = []
        for line in lines:
            try:
                fields = json.loads(str(line, "utf-8"))
                kind = fields["kind"]
                if kind == "Journal" or (isinstance(kind, str) and kind not in events.EVENTS):
                    continue
                when, event = float(fields["time"]), from_fields(fields)
                if not (math.isfinite(when) and _is_sane(event)):
                    raise ValueError(when)
                records.append(Record(when, event))
            except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
                self.num_damaged += bool(line)
        return records

    def records(self) -> Iterator[Record]:
        """All records that were not read yet; see `poll`."""
        while True:
            yield from self.poll()
            if self.lines.is_at_end:
                return

    @property
    def is_gone(self) -> bool | None:
        """Whether the newest process that writes here has ended; None where this one cannot tell, or none is named."""
        return next(map(is_gone, read_sessions(self.folder)[-1:]), None)


OWN_FILES = ("events.jsonl*", "run.json*", "output.log", "samples-*", "*.r8")


def free_of_runs(out: str | os.PathLike[str]) -> Path:
    """The path to write to, which must not be one of a run's own files.

    Raises:
        ValueError: it is one.
    """
    path = Path(out)
    target = path.resolve()
    if is_run(target.parent) and any(fnmatch.fnmatch(target.name, pattern) for pattern in OWN_FILES):
        raise ValueError(f"the file to write must not be one of a run's own files, got {str(path)!r}.")
    return path


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a run's."""
    return (folder / "events.jsonl").is_file()


def runs_in(folder: Path) -> list[Path]:
    """The run folders in a folder, the last written first."""
    try:
        found = [entry for entry in folder.iterdir() if entry.is_dir() and is_run(entry)]
    except OSError:
        return []
    return sorted(found, key=last_written, reverse=True)


def last_written(run: Path) -> float:
    """Wall time at which the journal of a run was last written to; 0 where it cannot be told."""
    try:
        return os.stat(run / "events.jsonl").st_mtime
    except OSError:
        return 0.0


def runs_folder() -> Path:
    """The folder of runs: the value of the environment variable R8_RUNS, else "runs"."""
    return Path(os.environ.get("R8_RUNS") or "runs")


NO_RUNS = (
    "runs must be in {!r}, got no run folder there: run_dir=True or use_curses=True of R8Scheduler and attach() keeps "
    "one; for runs elsewhere give their folder."
)


def find_run(name: str | None, parent: str | os.PathLike[str] | None = None) -> Path:
    """The run folder that a name stands for.

    Args:
        name: A run folder, a folder of runs (for its newest), or the name of a run in ``parent`` or its beginning,
            with or without the time that it begins with (the newest is meant); None for the newest in ``parent``.
        parent: The folder of runs; by default `runs_folder`.

    Raises:
        UnreadableRun: there is none.
    """
    parent, given = runs_folder() if parent is None else Path(parent), name
    if name is not None and (folder := Path(name)).is_dir():
        if is_run(folder):
            return folder
        parent, name = folder, None
    runs, short = runs_in(parent), functools.partial(re.sub, r"^\d{8}-\d{6}-", "")
    found = [run for run in runs if name is None or run.name.startswith(name)]
    found = found or [run for run in runs if short(run.name).startswith(name or "")]
    if not found:
        known = ", ".join(run.name for run in runs[:5]) or "none"
        if given is None:
            raise UnreadableRun(NO_RUNS.format(str(parent)))
        meant = did_you_mean(name or "", [text for run in runs for text in (short(run.name), run.name)])
        if name is None and next(parent.glob("ck_*.r8"), None) is not None:
            meant = " It holds checkpoints; run_dir= keeps a run folder."
        raise UnreadableRun(f"run must be a run folder, or one in {str(parent)!r} ({known}), got {given!r}.{meant}")
    return found[0]


FORMAT = 1
MOST_SESSIONS = 100
MOST_JSON_BYTES = 2**22
MOST_GIT_BYTES = 4096
"""Most bytes of a line in the files of git that are read."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def this_process() -> dict[str, Any]:
    """The identity of this process: pid and host, and where the system has them boot, namespace and start."""
    namespace, boot, started = _text_of("/proc/self/ns/pid"), _text_of(_BOOT_ID), _started("self")
    where = {"pid": os.getpid(), "host": socket.gethostname(), "boot_id": boot}
    return {**where, "pid_namespace": namespace, "process_started": started}


def is_gone(process: Mapping[str, Any]) -> bool | None:
    """Whether a process that `this_process` described has ended; None where this process cannot tell.

    Args:
        process: Its description from a file, not trusted.
    """
    here = this_process()
    if not process.get("host") or process["host"] != here["host"]:
        return None
    if process.get("boot_id") != here["boot_id"]:
        return True
    pid = process.get("pid")
    if process.get("pid_namespace") != here["pid_namespace"] or type(pid) is not int or not 0 < pid < 2**31:
        return None
    if here["process_started"] is not None:
        return _started(str(pid)) != process.get("process_started")
    # On Windows os.kill would end the process.
    if os.name != "posix":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return None
    return False


def _started(pid: str) -> int | None:
    """Clock ticks after boot at which a process started; None without the process or without /proc."""
    text = _text_of(f"/proc/{pid}/stat")
    # The name in parentheses may hold anything; a zombie counts as ended.
    fields = text.rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] != "Z" else None


def _text_of(path: str) -> str:
    """What a file of the system holds, or where a link leads; "" where there is none."""
    try:
        return os.readlink(path) if os.path.islink(path) else Path(path).read_text("ascii", "replace").strip()
    except OSError:
        return ""


def write_about(folder: Path, *, name: str, configuration: Mapping[str, str], wall: float) -> None:
    """Write run.json, or add this process to the one that is there.

    Raises:
        OSError: it cannot be written.
    """
    from ..events.versions import versions

    sessions = read_sessions(folder)[-(MOST_SESSIONS - 1) :]
    about = {
        "format": FORMAT, "name": name,
        "sessions": [*sessions, {**this_process(), "started": wall, "started_at": utc(wall)}],
        "program": Path(sys.argv[0]).name if sys.argv else "", "versions": versions(),
        "platform": platform.platform(), "configuration": dict(configuration),
    }  # fmt: skip
    replace(folder / "run.json", strict_json(about, indent=1).encode())


def read_about(folder: Path) -> dict[str, Any]:
    """The content of run.json; empty where it cannot be read."""
    try:
        return read_json(folder / "run.json", MOST_JSON_BYTES)
    except (OSError, ValueError):
        return {}


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The processes in a run.json; none if it cannot be read."""
    sessions = read_about(folder).get("sessions")
    return [one for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []


def git_commit() -> str:
    """The first 12 digits of the git commit of the program's folder; "" without one.

    It is read from git's files: git itself runs what the configuration of a repository names (``core.fsmonitor``, the
    filters of files), and whoever gave it to the user has written that.
    """
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path()
    try:
        folder = program.resolve().parent if program.is_file() else Path.cwd()
        found = next(each / ".git" for each in (folder, *folder.parents) if (each / ".git").exists())
        # In a worktree or a submodule it is a file.
        own = found if found.is_dir() else found.parent / _line_of(found).removeprefix("gitdir: ")
        shared = own / _line_of(own / "commondir") if (own / "commondir").exists() else own
        text = _line_of(own / "HEAD")
        if text.startswith("ref: "):
            text = _commit_of(text.removeprefix("ref: "), own, shared)
    except (OSError, ValueError, StopIteration):
        return ""
    return text[:12] if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", text) else ""


def _commit_of(name: str, own: Path, shared: Path) -> str:
    """What a ref of git holds; "" if there is none."""
    if not re.fullmatch(r"refs(/[^/.][^/]*)+", name):
        return ""
    for home in (own, shared):
        if (home / name).exists():
            return _line_of(home / name)
    with open_regular(shared / "packed-refs") as file:
        lines = (line.decode("utf-8", "replace").split() for line in file)
        return next((words[0] for words in lines if words[1:] == [name]), "")


def _line_of(path: Path) -> str:
    with open_regular(path) as file:
        return file.readline(MOST_GIT_BYTES).decode("utf-8", "replace").strip()


def utc(wall: float) -> str:
    """A wall time as text, "2026-11-20T14:02:31Z"; "?" beyond the range of calendars."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))
    except (OverflowError, OSError, ValueError):
        return "?"
