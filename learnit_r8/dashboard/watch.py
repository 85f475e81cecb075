"""Watch: the same screen from a run folder, for as many people as like, whenever they like. Nothing reaches the run."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..events import Event
from ..journal.reading import Lines
from ..journal.run import Run, State
from .looking import Action, Scene
from .view import View

POLL_SECONDS = 0.1
"""Of reading between two frames, at most."""
STATE_SECONDS = 1.0
OUTPUT_BYTES = 2**16
MOST_OUTPUT = 1000

NOT_HERE = {
    Action.SAVE: "saving needs the training's own screen: this one only looks on",
    Action.STOP: "stopping needs the training's own screen: this one only looks on",
    Action.PAUSE: "pausing needs the training's own screen: this one only looks on",
    Action.DETACH: "this screen only looks on: q leaves it",
}


class ToughView(View):
    """A view that leaves out what it cannot take in: the events come from a file that anybody may have written.

    Attributes:
        num_left_out: Events that could not be folded.
    """

    num_left_out = 0

    def fold(self, event: Event) -> None:
        """Take in an event, or leave it out."""
        try:
            super().fold(event)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            self.num_left_out += 1


class Output:
    """The end of ``output.log``, as it grows.

    Args:
        folder: The run folder.

    Attributes:
        lines: The newest lines; raw.
        num_lines: Lines seen.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "output.log"
        size = 0
        with contextlib.suppress(OSError):
            size = os.lstat(path).st_size
        self._file = Lines(path, offset=max(0, size - OUTPUT_BYTES))
        self.lines: list[str] = []
        self.num_lines = 0

    def read(self) -> None:
        """Read on."""
        with contextlib.suppress(OSError):
            new = [line.decode("utf-8", errors="replace")[:10_000] for line in self._file.read(OUTPUT_BYTES)]
            self.num_lines += len(new)
            self.lines = (self.lines + new)[-MOST_OUTPUT:]


class Watch:
    """Whom a painter draws for when a run is watched from its folder.

    A long journal is drawn at a glance first, and read in full by a thread meanwhile.

    Args:
        folder: The run folder.
        clock: Seconds, monotonic.
        wall: Seconds since 1970.

    Raises:
        UnreadableRun: the folder holds no run.

    Attributes:
        view: What is known at first.
        show: Called with another view to draw instead.
        run: The run, as far as it was read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.run = Run(folder, wall=wall)
        self.view: View = ToughView()
        self.show: Callable[[View], None] = _nothing
        self._clock, self._wall = clock, wall
        self._heard = math.nan
        self._state, self._state_until = State("empty", ""), -math.inf
        self._output = Output(self.run.folder)
        self._num_read = 0
        self._error: Exception | None = None
        for record in self.run.glance():
            self.view.fold(record.event)
            self._heard = record.time
        self._loader = None if self.run.is_read else self._start_loading()

    def _start_loading(self) -> threading.Thread:
        self._whole, self._whole_run = ToughView(), Run(self.run.folder, wall=self._wall)
        loader = threading.Thread(target=self._load, name="r8-loader", daemon=True)
        loader.start()
        return loader

    def _load(self) -> None:
        try:
            for record in self._whole_run.records():
                self._whole.fold(record.event)
                self._heard = record.time
        except Exception as error:
            self._error = error

    def events(self) -> Iterator[Event]:
        """What was added since the last call."""
        if self._error is not None:
            raise self._error
        if self._loader is not None:
            if self._loader.is_alive():
                return
            self._loader = None
            self.run = self._whole_run
            self._put(self._whole)
        yield from self._poll()

    def _poll(self) -> Iterator[Event]:
        until = self._clock() + POLL_SECONDS
        while True:
            restarts = self.run.num_restarts
            records = self.run.poll()
            if self.run.num_restarts > restarts:
                self._put(ToughView())
            for record in records:
                self._heard = record.time
                yield record.event
            if self.run.is_read or self._clock() >= until:
                return

    def _put(self, view: View) -> None:
        self.view = view
        self.show(view)

    @property
    def state(self) -> State:
        """Whether the run goes on; looked up once a second."""
        if self._clock() >= self._state_until:
            self._state, self._state_until = self.run.state(), self._clock() + STATE_SECONDS
        return self._state

    def scene(self) -> Scene:
        """What is known beside the events."""
        state = self.state
        self._output.read()
        now = None
        if state.word in ("running", "stalled") and not self.view.is_paused and self._heard == self._heard:
            now = self.view.seconds + max(0.0, self._wall() - self._heard)
        return Scene(
            now=now,
            output=self._output.lines,
            num_output=self._output.num_lines,
            link=f"{state.word} {state.detail}".strip() if state.word == "stalled" else state.word,
            folder=os.fspath(self.run.folder),
            said="" if self._loader is None else f"reading all of it, {self._whole_run.share_read:.0%}",
        )

    def act(self, action: Action) -> str:
        """Say why what a key asks for cannot be done from here."""
        return NOT_HERE.get(action, "")

    def left(self) -> None:
        """Nothing to do."""

    def returning(self) -> None:
        """Nothing to do."""


def _nothing(view: View) -> None:
    """Until somebody draws."""
