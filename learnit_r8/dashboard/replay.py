"""The replay of a run from its folder, at any speed or at once."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator

from ..events import Event, RunStarted
from ..journal.run import Record, Run
from .state.ui_state import Action, Scene
from .state.view import View

WHOLE_SECONDS = 20.0
"""Duration of a whole run at the default speed."""
FACTOR = 2.0
MOST_A_FRAME = 20_000
"""Records folded between two frames; the rest waits, so that keys are answered."""


class Replay:
    """The owner of a screen that shows a run again.

    Args:
        folder: The run folder.
        speed: Training seconds per second, > 0; None to show the whole run in twenty seconds.
        to_step: The replay pauses at this step; None for the end.
        clock: Seconds, monotonic.

    Raises:
        UnreadableRun: the folder holds no run.

    Attributes:
        view: The run up to the position.
        run: The run folder.
        speed: Training seconds per second.
        position: Training seconds shown so far.
        is_paused: Whether the position stands still.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        speed: float | None = None,
        to_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view = View(skips_damage=True)
        self.run = Run(folder)
        self._records = iter(self.run.records())
        self._next: Record | None = next(self._records, None)
        self._to_step = math.inf if to_step is None else to_step
        if speed is None:
            seconds = max((record.event.seconds for record in Run(folder).glance()[-100:]), default=0.0)
            speed = float(f"{max(seconds / WHOLE_SECONDS, 1e-3):.2g}")
        self.speed = speed
        self.position = self._shown = 0.0
        self.is_paused = False
        self._clock = clock
        self._last = clock()

    def events(self) -> Iterator[Event]:
        """Events of the training time that has passed since the last call."""
        now = self._clock()
        if not self.is_paused:
            self.position += (now - self._last) * self.speed
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
        """The position, the speed, and whether the replay is paused."""
        return Scene(
            now=self.position if self._next is not None else None,
            folder=os.fspath(self.run.folder),
            speed=self.speed,
            is_paused=self.is_paused and self._next is not None,
        )

    def act(self, action: Action) -> str:
        """Pause, go on, or change the speed."""
        match action:
            case Action.PAUSE:
                self.is_paused = not self.is_paused
                if not self.is_paused:
                    self._to_step = math.inf
                return "stands still" if self.is_paused else "goes on"
            case Action.FASTER | Action.SLOWER:
                self.speed *= FACTOR if action is Action.FASTER else 1 / FACTOR
                return f"{self.speed:.3g} training seconds per second"
        return ""


def view_of(run: Run) -> View:
    """The state after all events of a run, without those that are damaged."""
    view = View(skips_damage=True)
    for record in run.records():
        view.fold(record.event)
    return view
