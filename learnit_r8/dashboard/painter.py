"""The painter: a loop in a thread of its own that folds events, answers keys and draws, within a budget of CPU time.

Its owner gives it events and takes its actions, so that it draws a training and a run folder in the same way.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from .. import events
from .keys import press
from .render.frame import render
from .state.ui_state import Action, Scene, UiState
from .state.view import View
from .terminal.capture import Capture
from .terminal.screen import Screen, is_in_background
from .text import Line

FRAME_SECONDS = 0.25
"""Least time between two frames: four a second."""

KEY_SECONDS = 0.05
"""Least time between two frames while keys are pressed."""

CPU_SHARE = 0.006
"""Share of one core that drawing may take; expensive frames are drawn less often."""

TOUCH_SECONDS = 10.0
SAID_SECONDS = 5.0
LEAVE_SECONDS = 1.0
RETURN_SECONDS = 0.5


class Owner(Protocol):
    """The owner of a screen, which the painter draws.

    Attributes:
        view: The run. Its owner replaces it when it reads the run again.
    """

    view: View

    def events(self) -> Iterable[events.Event]:
        """Events since the last call."""

    def scene(self) -> Scene:
        """The time, the output and the state of the owner, beside the events."""

    def act(self, action: Action) -> str:
        """Take the action of a key; returns an answer to show."""


class Painter:
    """Draws the view of its owner until `stop`.

    Args:
        screen: The terminal.
        owner: Gives events and takes actions; only the painter folds events into its view.
        ui: First state of the screen.
        capture: Keeps printed text off the screen, and pauses while the screen is left; None for none.
        clock: Returns seconds, monotonic.
        cpu_clock: Returns the CPU seconds of the calling thread.

    Attributes:
        has_opened: Set once the screen is open, or could not be opened.
        opened: Whether the person has left to open the selected run.
        ui_share: Share of one core the painter has taken in the last seconds; NaN before it is known.
    """

    def __init__(
        self, screen: Screen, owner: Owner, ui: UiState, *, capture: Capture | None = None,
        clock: Callable[[], float] = time.monotonic, cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:  # fmt: skip
        self.has_opened = threading.Event()
        self.ui_share = math.nan
        self.ui, self.opened = ui, False
        self.lines: list[Line] = []
        self._screen, self._owner, self._capture = screen, owner, capture
        self._clock, self._cpu_clock = clock, cpu_clock
        self._is_stopping = False
        self._num_suspended = 0
        self._is_away, self._was_behind = False, False
        self._has_left = threading.Event()
        self._back_at = -math.inf
        self._last_draw = self._next_draw = self._next_touch = -math.inf
        self._cpu_before = 0.0
        self._costs: deque[float] = deque(maxlen=7)
        self._shares: deque[tuple[float, float]] = deque(maxlen=32)
        self._said, self._said_until = "", -math.inf

    @property
    def view(self) -> View:
        """The view that is drawn."""
        return self._owner.view

    def run(self) -> None:
        """Draw until `stop`, in this thread; always gives the terminal back.

        Raises:
            UnusableTerminal: the terminal cannot show a screen, or has gone.
            Exception: the error of a drawing function.
        """
        if hasattr(signal, "SIGTTOU"):
            # They stop a background process that changes the settings of the terminal.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU, signal.SIGTTIN})
        self._cpu_before = self._cpu_clock()
        try:
            self._screen.open()
            self.has_opened.set()
            while not self._is_stopping:
                self._turn()
        finally:
            self._screen.close()
            self.has_opened.set()
            self._has_left.set()

    def stop(self) -> None:
        """Have `run` return soon. From any thread."""
        self._is_stopping = True
        self._screen.wake()

    def suspend(self) -> None:
        """Leave the screen until `resume`; returns when it is left, or after a second. From another thread."""
        self._num_suspended += 1
        self._has_left.clear()
        if self._is_away:
            self._has_left.set()
        self._screen.wake()
        self._has_left.wait(LEAVE_SECONDS)

    def resume(self) -> None:
        """Take the screen again after a moment, as a debugger asks several questions in a row. From another thread."""
        self._back_at = self._clock() + RETURN_SECONDS
        self._num_suspended -= 1
        self._screen.wake()

    def say(self, text: str) -> None:
        """Show a text for some seconds."""
        self._said, self._said_until = text, self._clock() + SAID_SECONDS

    def _turn(self) -> None:
        """Do one round: leave or come back, wait, answer keys, draw."""
        # `suspend` or `resume` may have asked for the screen to be left or taken again.
        wants_away = self._num_suspended > 0 or self._clock() < self._back_at
        if wants_away and not self._is_away:
            self._leave()
            self._has_left.set()
        elif self._is_away and not wants_away and not is_in_background():
            if self._capture is not None:
                self._capture.resume()
            self._screen.come_back()
            self._is_away, self._next_draw = False, -math.inf
        if self._is_away:
            until_back = FRAME_SECONDS if self._num_suspended else max(0.01, self._back_at - self._clock())
            self._screen.wait(until_back, for_keys=False)
            return
        if is_in_background():
            self._was_behind = True
            self._screen.wait(FRAME_SECONDS, for_keys=False)
            return
        if self._was_behind:
            self._was_behind = False
            self._screen.come_back()
        self._screen.wait(self._next_draw - self._clock())
        pressed = self._screen.keys()
        for key in pressed:
            self._press(key)
        now = self._clock()
        if pressed:
            self._next_draw = min(self._next_draw, max(now, self._last_draw + KEY_SECONDS))
        if now >= self._next_draw and not self._is_stopping:
            self._draw(now)

    def _leave(self) -> None:
        """Leave the screen, and let printed text through meanwhile."""
        self._screen.leave()
        if self._capture is not None:
            self._capture.pause()
        self._is_away = True

    def _press(self, key: str) -> None:
        if key == "ctrl-z":
            if hasattr(signal, "SIGTSTP"):
                self._leave()
                # To the whole job, as the terminal does elsewhere; the system does not stop a job that has no shell to
                # continue it, and a continued job takes the screen again.
                os.kill(0, signal.SIGTSTP)
            return
        self.ui, action = press(key, self.ui, self.view)
        if action is not None:
            screen = self._screen
            match action:
                case Action.REPAINT:
                    screen.repaint()
                case Action.THEME:
                    screen.theme = screen.theme.next()
                    screen.repaint()
                case Action.LEAVE | Action.OPEN:
                    self.opened = action is Action.OPEN
                    self._is_stopping = True
                case _:
                    self.say(self._owner.act(action))

    def _draw(self, now: float) -> None:
        screen = self._screen
        screen.measure()
        # Freezing is not folding: the events wait with the owner.
        if not self.ui.frozen:
            for event in self._owner.events():
                self.view.fold(event)
        scene = self._owner.scene()
        said = self._said if self._said and now < self._said_until else scene.said
        scene = replace(scene, said=said, ui_share=self.ui_share)
        self.lines = render(self.view, self.ui, screen.width, screen.height, screen.theme, scene)
        if now >= self._next_touch:
            screen.touch()
            self._next_touch = now + TOUCH_SECONDS
        screen.paint(self.lines)
        self._last_draw = now
        # Of a frame: the CPU seconds since the one before.
        spent, self._cpu_before = self._cpu_clock() - self._cpu_before, self._cpu_clock()
        self._costs.append(spent)
        self._shares.append((now, spent))
        passed = now - self._shares[0][0]
        if passed > 1:
            self.ui_share = sum(cost for _, cost in list(self._shares)[1:]) / passed
        # The first frames load modules and allocate buffers that the others use.
        usual = statistics.median(self._costs) if len(self._costs) > 2 else 0.0
        self._next_draw = now + max(FRAME_SECONDS, usual / CPU_SHARE)
