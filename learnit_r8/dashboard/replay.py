"""Replay: a run shown again from its folder, as fast as one likes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator

from ..events import Event, RunStarted
from ..journal import Record, Run
from .looking import Action, Scene
from .view import View
from .watch import NOT_HERE, ToughView

WHOLE_SECONDS = 20.0
"""How long all of a run takes at the speed that is taken if none is given."""
FACTOR = 2.0
MOST_A_FRAME = 20_000
"""Records taken in between two frames; more wait for the next one, so that keys stay alive."""


class Replay:
    """Whom a painter draws for when a run is shown again.

    Args:
        folder: The run folder.
        speed: Training seconds per second, > 0; None for all of it in twenty seconds.
        to_step: Step to stand still at; None for the end.
        clock: Seconds, monotonic.

    Raises:
        UnreadableRun: the folder holds no run.

    Attributes:
        view: What to draw.
        speed: Training seconds per second.
        position: Training seconds shown so far.
        is_paused: Whether it stands still.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        speed: float | None = None,
        to_step: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view: View = ToughView()
        self.show: Callable[[View], None] = _nothing
        self._run = Run(folder)
        self._records = iter(self._run.records())
        self._next: Record | None = next(self._records, None)
        self._to_step = math.inf if to_step is None else to_step
        self.speed = _usual_speed(self._run) if speed is None else speed
        self.position = self._shown = 0.0
        self.is_paused = False
        self._clock = clock
        self._last = clock()

    def events(self) -> Iterator[Event]:
        """What happened in the time that has passed since the last call."""
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
                # A later session begins where its checkpoint was; nobody wants to wait for what lies between.
                self.position = min(self.position, record.event.seconds)
            if record.event.seconds > self.position:
                return
            self._next, self._shown = next(self._records, None), record.event.seconds
            yield record.event
        self.position = min(self.position, self.view.seconds)

    def jump(self) -> None:
        """Take in everything up to the step to stand still at."""
        while self._next is not None and self._next.event.step <= self._to_step:
            self.view.fold(self._next.event)
            self._next = next(self._records, None)
        self.position, self.is_paused = self.view.seconds, True

    def scene(self) -> Scene:
        """What is known beside the events."""
        return Scene(
            now=self.position if self._next is not None else None,
            folder=os.fspath(self._run.folder),
            speed=self.speed,
            is_paused=self.is_paused and self._next is not None,
        )

    def act(self, action: Action) -> str:
        """Stand still or go on, faster or slower."""
        match action:
            case Action.PAUSE:
                self.is_paused = not self.is_paused
                if not self.is_paused:
                    self._to_step = math.inf
                return "stands still" if self.is_paused else "goes on"
            case Action.FASTER | Action.SLOWER:
                self.speed *= FACTOR if action is Action.FASTER else 1 / FACTOR
                return f"{self.speed:.3g} training seconds a second"
        return NOT_HERE.get(action, "")

    def left(self) -> None:
        """Nothing to do."""

    def returning(self) -> None:
        """Nothing to do."""


def _usual_speed(run: Run) -> float:
    seconds = max((record.event.seconds for record in Run(run.folder).glance()[-100:]), default=0.0)
    return float(f"{max(seconds / WHOLE_SECONDS, 1e-3):.2g}")


def _nothing(view: View) -> None:
    """The view is never exchanged."""
