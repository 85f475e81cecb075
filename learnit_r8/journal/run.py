"""A run, read from its folder: its name, its events, and its state."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..events import (
    BatchRefused,
    EpochDone,
    GaveUp,
    ProcessLeft,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    RunStopped,
    StepsDone,
)
from .reader import Lines, Parser, Record, preview, read_json
from .run_info import is_gone, read_sessions

SILENT_SECONDS = 35.0
"""Time without a record after which a run is stalled; a journal writes every ten seconds."""
WAITING_SECONDS = 60.0
BETWEEN_EPOCHS_SECONDS = 600.0
"""Time without a step after which a run is stalled, within an epoch and between two epochs, and at least
`WAITING_FACTOR` times the longest pause so far."""
WAITING_FACTOR = 3.0


class UnreadableRun(ValueError):
    """A folder holds no readable run; the message says why."""


class State(NamedTuple):
    """The state of a run.

    Attributes:
        word: "running", "stalled", "died", "diverged", "finished", "finished early", "stopped" or "empty".
        detail: A few more words, or "".
    """

    word: str
    detail: str


class Run:
    """A run folder that is read step by step.

    Args:
        folder: The run folder.
        wall: Returns seconds since 1970.

    Raises:
        UnreadableRun: it is not a folder, or holds no journal.

    Attributes:
        folder: The run folder.
        lines: The journal, as far as it was read.
        parser: Counts the lines that are not records.
    """

    def __init__(self, folder: str | os.PathLike[str], *, wall: Callable[[], float] = time.time) -> None:
        self.folder = Path(folder)
        self.parser = Parser()
        self._wall = wall
        self.lines = Lines(self.folder / "events.jsonl")
        self._reset()
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

    def _reset(self) -> None:
        self._heard = self._stepped = 0.0
        self._longest_pause = 0.0
        self._end: RunEnded | ProcessLeft | None = None
        self._early: str | None = None
        self._gave_up = False
        self._progress = 0.0
        self._is_paused = self._is_between_epochs = False

    def about(self) -> dict[str, Any]:
        """The content of run.json; empty where it cannot be read."""
        try:
            return read_json(self.folder / "run.json")
        except (OSError, ValueError):
            return {}

    @property
    def name(self) -> str:
        """Name of the run, else that of its folder."""
        name = self.about().get("name")
        return name if isinstance(name, str) and name else self.folder.name

    def glance(self) -> list[Record]:
        """Records for the whole course and the state: all of a short journal, a selection of a long one; see `poll`."""
        with self._opening():
            found = preview(self.lines.path, self.parser)
        if found is None:
            return list(self.records())
        before, tail = found
        for record in tail:
            self._look(record)
        return before + tail

    def poll(self) -> list[Record]:
        """The next block of records, empty at the end of the journal; UnreadableRun where the journal is gone."""
        restarts = self.lines.num_restarts
        with self._opening():
            lines = self.lines.read()
        if self.lines.num_restarts > restarts:
            self._reset()
        records = self.parser.parse(lines)
        for record in records:
            self._look(record)
        return records

    def records(self) -> Iterator[Record]:
        """All records that were not read yet; see `poll`."""
        while True:
            yield from self.poll()
            if self.lines.is_at_end:
                return

    def _look(self, record: Record) -> None:
        event = record.event
        self._heard = record.time
        if isinstance(event, RunStarted):
            self._end, self._early, self._stepped, self._gave_up = None, None, record.time, False
            # The progress of an earlier run in this folder does not count.
            self._progress = event.step / event.total_steps if event.total_steps else 0.0
        if isinstance(event, (StepsDone, BatchRefused)):
            self._longest_pause = max(self._longest_pause, record.time - (self._stepped or record.time))
            self._stepped = record.time
        if isinstance(event, (StepsDone, EpochDone)):
            self._progress = event.progress
            # A validation of unknown length may follow.
            self._is_between_epochs = isinstance(event, EpochDone)
        if isinstance(event, (RunStarted, RunPaused, RunResumed)):
            self._is_paused = isinstance(event, RunPaused)
            self._stepped = record.time
        if isinstance(event, RunStopped) and event.is_early:
            self._early = event.reason
        if isinstance(event, GaveUp):
            self._gave_up = True
        # An exception after the end of a run is not one of its training.
        if isinstance(event, RunEnded) or (isinstance(event, ProcessLeft) and not self._has_finished):
            self._end = event
        if isinstance(event, RunEnded):
            self._early = event.early

    def state(self) -> State:
        """State of the run, as far as it was read."""
        end, now = self._end, self._wall()
        if self._gave_up:
            return State("diverged", "everything was tried")
        if isinstance(end, ProcessLeft) and end.error:
            return State("died", end.error)
        if end is not None:
            if self._early is not None:
                return State("finished early", self._early)
            finished = end.finished if isinstance(end, RunEnded) else self._progress >= 1
            return State("finished" if finished else "stopped", "")
        if not self._heard:
            return State("empty", "")
        if any(map(is_gone, read_sessions(self.folder)[-1:])):
            return State("finished", "") if self._progress >= 1 else State("died", "the process is gone")
        if now - self._heard > SILENT_SECONDS:
            return State("stalled", f"no sign of life for {seconds_text(now - self._heard)}")
        if self._is_paused:
            return State("running", "paused")
        waited = now - self._stepped
        usual = BETWEEN_EPOCHS_SECONDS if self._is_between_epochs else WAITING_SECONDS
        if self._stepped and waited > max(usual, WAITING_FACTOR * self._longest_pause):
            return State("stalled", f"no step for {seconds_text(waited)}")
        return State("running", "")

    @property
    def _has_finished(self) -> bool:
        return isinstance(self._end, RunEnded) and self._end.finished


def names_of(runs: Sequence[Run]) -> list[str]:
    """The names of runs; those of their folders where several have the same name, as in a sweep."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.folder.name for run in runs]


def seconds_text(seconds: float) -> str:
    """A duration in one unit: "45 s", "12 min", "3.5 h", "2.1 days"."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


OWN_FILES = ("events.jsonl*", "run.json*", "output.log", "samples-*.npz", "*.r8")


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
    return sorted(found, key=_last_written, reverse=True)


def _last_written(run: Path) -> float:
    try:
        return os.stat(run / "events.jsonl").st_mtime
    except OSError:
        return 0.0


def runs_folder() -> Path:
    """The folder of runs: the value of the environment variable R8_RUNS, else "runs"."""
    return Path(os.environ.get("R8_RUNS") or "runs")


def _without_time(name: str) -> str:
    """The name of a run folder without the time that a new one begins with."""
    return re.sub(r"^\d{8}-\d{6}-", "", name)


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
        parent, given, name = folder, name, None
    runs = runs_in(parent)
    found = [run for run in runs if name is None or run.name.startswith(name)]
    found = found or [run for run in runs if _without_time(run.name).startswith(name or "")]
    if not found:
        from difflib import get_close_matches

        known = ", ".join(run.name for run in runs[:5]) or "none"
        if given is None:
            raise UnreadableRun(NO_RUNS.format(str(parent)))
        names = {_without_time(run.name): run.name for run in runs[::-1]} | {run.name: run.name for run in runs}
        near = get_close_matches(name or "", names, 1)
        meant = f" Did you mean {names[near[0]]}?" if near else ""
        if given is not None and next(parent.glob("ck_*.r8"), None) is not None and name is None:
            meant = " It holds checkpoints; run_dir= keeps a run folder."
        raise UnreadableRun(f"run must be a run folder, or one in {str(parent)!r} ({known}), got {given!r}.{meant}")
    return found[0]
