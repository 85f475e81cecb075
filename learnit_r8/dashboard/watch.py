"""The screen of a run, read from its folder: for any number of viewers, at any time, without effect on the run."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..events import Event, RunStarted
from ..events.steps import is_lower_better
from ..events.text import clean, number, seconds_text
from ..journal.run import Lines, Record, Run, UnreadableRun, last_written, runs_in
from .state.run_state import State, state_of
from .state.ui_state import Action, RunRow, Scene
from .state.view import View

POLL_SECONDS = 0.1
"""Longest time of reading between two frames."""
OUTPUT_BYTES = 2**16
MOST_OUTPUT = 1000

HOW_TO_ASK = "this screen only watches; to control the training: learnit-r8 ask pause (save, cool-down, stop)"


class SeenRun(NamedTuple):
    """A run as it was read from its folder.

    Attributes:
        run: The run folder.
        view: Its events, folded.
        state: Its state.
    """

    run: Run
    view: View
    state: State


def look(folder: str | os.PathLike[str], *, is_glance: bool = False, now: float | None = None) -> SeenRun:
    """Read all of a run, or a selection of its records; those that are damaged are left out.

    Args:
        folder: The run folder.
        is_glance: Whether a selection will do.
        now: Seconds since 1970; by default those of the system.

    Raises:
        UnreadableRun: the folder holds no run.
    """
    run, view = Run(folder), View(skips_damage=True)
    fold_records(view, run.glance() if is_glance else run.records())
    return see(run, view, now)


def see(run: Run, view: View, now: float | None = None) -> SeenRun:
    """A run whose events were folded, with its state; see `look`."""
    return SeenRun(run, view, state_of(view, Scene(clock=time.time() if now is None else now, is_gone=run.is_gone)))


def fold_records(view: View, records: Iterable[Record]) -> None:
    """Add the events of records, with the times at which they were written."""
    for record in records:
        view.heard = record.time
        view.fold(record.event)


class Watch:
    """The owner of a screen that follows a run folder.

    It shows a selection of a long journal first, while a thread reads all of it.

    Args:
        folder: The run folder.
        wall: Seconds since 1970.

    Raises:
        UnreadableRun: the folder holds no run.

    Attributes:
        view: The run; replaced when the whole journal was read, and when another file took its place.
        run: The run folder, as far as it was read.
    """

    def __init__(self, folder: str | os.PathLike[str], *, wall: Callable[[], float] = time.time) -> None:
        self.run = Run(folder)
        self.view = View(skips_damage=True)
        self._wall = wall
        self._output: list[str] = []
        self._num_output = 0
        self._output_file = _end_of(self.run.folder / "output.log")
        self._error: Exception | None = None
        fold_records(self.view, self.run.glance())
        self._loader: threading.Thread | None = None
        if not self.run.lines.is_at_end:
            self._whole, self._whole_run = View(skips_damage=True), Run(folder)
            self._loader = threading.Thread(target=self._load, name="r8-loader", daemon=True)
            self._loader.start()

    def _load(self) -> None:
        try:
            fold_records(self._whole, self._whole_run.records())
        except Exception as error:
            self._error = error

    def events(self) -> Iterator[Event]:
        """Events that were added since the last call."""
        if self._error is not None:
            raise self._error
        if self._loader is not None:
            if self._loader.is_alive():
                return
            self._loader = None
            self.run, self.view = self._whole_run, self._whole
        until = time.monotonic() + POLL_SECONDS
        while True:
            restarts = self.run.lines.num_restarts
            records = self.run.poll()
            if self.run.lines.num_restarts > restarts:
                self.view = View(skips_damage=True)
            for record in records:
                self.view.heard = record.time
                yield record.event
            if self.run.lines.is_at_end or time.monotonic() >= until:
                return

    def scene(self) -> Scene:
        """The time, the output, and whether the process has ended."""
        new = _lines_of(self._output_file)
        self._num_output += len(new)
        self._output = (self._output + new)[-MOST_OUTPUT:]
        scene = Scene(
            clock=self._wall(), is_gone=self.run.is_gone, output=self._output, num_output=self._num_output,
            folder=os.fspath(self.run.folder),
            said="" if self._loader is None else f"reading all of it, {self._whole_run.lines.share_read:.0%}",
        )  # fmt: skip
        if state_of(self.view, scene).word in ("running", "stalled") and not self.view.is_paused:
            return replace(scene, now=self.view.seconds + max(0.0, scene.clock - self.view.heard))
        return scene

    def act(self, action: Action) -> str:
        """Say how to ask the training, which a viewer does not do."""
        return HOW_TO_ASK if action is Action.ASK else ""


LIST_SECONDS = 2.0
"""Time between two looks of a list at its runs."""
COURSE = 12


class RunList:
    """The owner of a screen that lists the runs in a folder.

    Args:
        folder: A folder of run folders.

    Attributes:
        view: Empty: no run is shown.
        rows: The runs.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.view, self.rows = View(), list[RunRow]()
        self._folder, self._due = Path(folder), -math.inf

    def events(self) -> Iterator[Event]:
        """No events; looks at the runs again where that is due."""
        if time.monotonic() >= self._due:
            self.rows = [row_of(run) for run in runs_in(self._folder)]
            self._due = time.monotonic() + LIST_SECONDS
        return iter(())

    def scene(self) -> Scene:
        """The runs."""
        return Scene(runs=self.rows, folder=os.fspath(self._folder))

    def act(self, action: Action) -> str:
        """Nothing is asked of a list."""
        return ""


def row_of(folder: Path, metric: str | None = None) -> RunRow:
    """A run in a list, from a selection of its records; for one that cannot be read, why.

    Args:
        folder: Its folder.
        metric: The metric to show, whose best value may be in any record; by default the one that is monitored, else
            one of data that is not trained on.
    """
    name = clean(folder.name, 60)
    try:
        _, view, state = look(folder, is_glance=metric is None)
    except UnreadableRun as error:
        texts = (name, "unreadable", clean(error, 60), "", "", "", "")
        return RunRow(os.fspath(folder), texts, (), (math.inf,) * 4 + (name,))
    written, shown = last_written(folder), metric or view.metric
    best = view.bests.get(shown)
    said = f"{shown} {number(best.value, 4)} @{best.step:,}" if best is not None else ""
    values = [point.value for point in view.metrics.get(shown, ())][-COURSE:]
    last = max(1, view.step)
    values = values if len(values) > 1 else view.loss.columns(min(COURSE, last), 0, last).mean.tolist()
    loss = number(view.ema, 4) if view.last is not None else "-"
    age = f"{seconds_text(max(0.0, time.time() - written))} ago"
    texts = (name, state.word, f"{view.progress:.1%}", view.step_text, loss, said, age)
    key = math.inf if best is None else (1.0 if is_lower_better(shown) else -1.0) * best.value
    return RunRow(os.fspath(folder), texts, tuple(values), (-written, key, state.word, -view.step, name))


def _end_of(path: Path) -> Lines:
    """The end of a file that may grow, and may not be there yet."""
    size = 0
    with contextlib.suppress(OSError):
        size = os.lstat(path).st_size
    return Lines(path, offset=max(0, size - OUTPUT_BYTES))


def _lines_of(output: Lines) -> list[str]:
    """The further lines of a captured output; none where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return [line.decode("utf-8", errors="replace")[:10_000] for line in output.read(OUTPUT_BYTES)]
    return []


WHOLE_SECONDS = 20.0
"""In which a replay shows a whole run."""
MOST_A_FRAME = 20_000
"""Records folded between two frames; the rest waits, so that keys are answered."""


class Replay:
    """The owner of a screen that shows a run again, the whole of it in twenty seconds.

    Args:
        folder: The run folder.
        to_step: The replay pauses at this step; None for the end.
        clock: Seconds, monotonic.

    Raises:
        UnreadableRun: the folder holds no run.

    Attributes:
        view: The run up to the position.
        run: The run folder.
        position: Training seconds shown so far.
        is_paused: Whether the position stands still.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, to_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.view, self.run = View(skips_damage=True), Run(folder)
        self._records = iter(self.run.records())
        self._next: Record | None = next(self._records, None)
        self._to_step = math.inf if to_step is None else to_step
        seconds = max((record.event.seconds for record in Run(folder).glance()[-100:]), default=0.0)
        self._speed = max(seconds / WHOLE_SECONDS, 1e-3)
        self.position = self._shown = 0.0
        # The end of what was printed, which has no times.
        self._output = _lines_of(_end_of(self.run.folder / "output.log"))[-MOST_OUTPUT:]
        self.is_paused = False
        self._clock, self._last = clock, clock()

    def events(self) -> Iterator[Event]:
        """Events of the training time that has passed since the last call."""
        now = self._clock()
        if not self.is_paused:
            self.position += (now - self._last) * self._speed
        self._last = now
        for _ in range(MOST_A_FRAME):
            record = self._next
            if record is None or record.event.step > self._to_step:
                self.is_paused = True
                return
            if isinstance(record.event, RunStarted) and record.event.seconds < self._shown:
                # A later session begins at its checkpoint: go back to it, do not wait until its events are due again.
                self.position = min(self.position, record.event.seconds)
            if record.event.seconds > self.position:
                return
            self._next, self._shown = next(self._records, None), record.event.seconds
            yield record.event
        self.position = min(self.position, self.view.seconds)

    def jump(self) -> None:
        """Fold every event up to the step at which the replay pauses."""
        while self._next is not None and self._next.event.step <= self._to_step:
            self.view.fold(self._next.event)
            self._next = next(self._records, None)
        self.position, self.is_paused = self.view.seconds, True

    def scene(self) -> Scene:
        """The position, and whether the replay is paused."""
        goes_on, folder = self._next is not None, os.fspath(self.run.folder)
        more: dict[str, Any] = {"output": self._output, "num_output": len(self._output), "folder": folder}
        return Scene(now=self.position if goes_on else None, is_paused=self.is_paused and goes_on, **more)

    def act(self, action: Action) -> str:
        """Pause or go on."""
        if action is not Action.PAUSE:
            return ""
        self.is_paused = not self.is_paused
        if not self.is_paused:
            self._to_step = math.inf
        return "stands still" if self.is_paused else "goes on"
