"""Painter: takes in events, answers keys and draws, within a budget of processor time. It runs in a thread of its own.

It knows a source of events and who answers its actions, not the run: a training and a folder are watched alike.
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
from .export import export_csv, export_svg
from .keys import press
from .looking import Action, Looking, Scene
from .modes import is_in_background
from .render import render
from .terminal import Screen
from .text import Line
from .view import View

FRAME_SECONDS = 0.25
"""Between two frames, at least: four a second."""

KEY_SECONDS = 0.05
"""Between two frames when keys are pressed, at least."""

CPU_SHARE = 0.006
"""Of one core, what drawing may take; frames come later where they cost more."""

HARD_SHARE = 0.01
"""Never more than this, however long the next frame has to wait."""

LONGEST_WAIT = 2.0
TOUCH_SECONDS = 10.0
SAID_SECONDS = 5.0
RETURN_SECONDS = 0.5


class Owner(Protocol):
    """Whom the painter draws for."""

    def events(self) -> Iterable[events.Event]:
        """What happened since the last call."""
        ...

    def scene(self) -> Scene:
        """What is known beside the events."""
        ...

    def act(self, action: Action) -> str:
        """Do what a key asks for; returns what to say about it."""
        ...

    def left(self) -> None:
        """The screen was left for a while."""
        ...

    def returning(self) -> None:
        """The screen is about to be taken again."""
        ...


class Painter:
    """Draws a view until it is told to stop.

    Args:
        screen: The terminal.
        view: What is known; only the painter folds into it.
        owner: Where events come from and actions go to.
        looking: Where the person looks at first.
        clock: Returns seconds, monotonic.
        cpu_clock: Returns the processor seconds of the calling thread.

    Attributes:
        has_opened: Set once the screen is open, or could not be opened.
        num_frames: Frames drawn.
        ui_share: Share of one core the painter has taken in the last seconds; NaN before it is known.
    """

    def __init__(
        self,
        screen: Screen,
        view: View,
        owner: Owner,
        looking: Looking,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.has_opened = threading.Event()
        self.num_frames = 0
        self.ui_share = math.nan
        self.view, self.looking = view, looking
        self.lines: list[Line] = []
        self._screen, self._owner = screen, owner
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

    def run(self) -> None:
        """Draw until `stop`, in this thread; the terminal is given back whatever happens.

        Raises:
            Unfit: the terminal cannot show a screen, or has gone.
            Exception: whatever drawing raised.
        """
        _ignore_background_writes()
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

    def suspend(self, most_seconds: float = 1.0) -> None:
        """Leave the screen until `resume`; returns when it is left, or after some seconds. From another thread."""
        self._num_suspended += 1
        self._has_left.clear()
        if self._is_away:
            self._has_left.set()
        self._screen.wake()
        self._has_left.wait(most_seconds)

    def resume(self, after_seconds: float = RETURN_SECONDS) -> None:
        """Take the screen again, a moment later: a debugger asks one question after the other. From another thread."""
        self._back_at = self._clock() + after_seconds
        self._num_suspended -= 1
        self._screen.wake()

    def say(self, text: str) -> None:
        """Show a text for some seconds."""
        self._said, self._said_until = text, self._clock() + SAID_SECONDS

    def _turn(self) -> None:
        """One round: leave or come back, wait, answer keys, draw."""
        if self._follow_suspension():
            self._screen.wait_hidden(FRAME_SECONDS if self._num_suspended else max(0.01, self._back_at - self._clock()))
            return
        if is_in_background():
            self._was_behind = True
            self._screen.wait_hidden(FRAME_SECONDS)
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

    def _follow_suspension(self) -> bool:
        """Leave the screen or take it again, as is wanted; whether it is left."""
        wants_away = self._num_suspended > 0 or self._clock() < self._back_at
        if wants_away and not self._is_away:
            self._screen.leave()
            self._owner.left()
            self._is_away = True
            self._has_left.set()
        elif self._is_away and not wants_away and not is_in_background():
            self._owner.returning()
            self._screen.come_back()
            self._is_away, self._next_draw = False, -math.inf
        return self._is_away

    def _press(self, key: str) -> None:
        if key == "ctrl-z":
            if hasattr(signal, "SIGTSTP"):
                self._stop_job()
            return
        self.looking, action = press(key, self.looking, self.view)
        if action is not None:
            self._act(action)

    def _act(self, action: Action) -> None:
        screen, folder = self._screen, self._owner.scene().folder or os.curdir
        match action:
            case Action.REPAINT:
                screen.repaint()
            case Action.THEME:
                screen.theme = screen.theme.next()
                screen.repaint()
            case Action.EXPORT_CSV:
                self.say(_saved(lambda: export_csv(self.view, self.looking, folder)))
            case Action.EXPORT_SVG:
                self.say(_saved(lambda: export_svg(self.lines, screen.theme, self.view.step, folder)))
            case Action.LEAVE:
                self._is_stopping = True
            case _:
                self.say(self._owner.act(action))

    def _stop_job(self) -> None:
        """What Ctrl-Z does elsewhere: give the terminal to the shell and stop; take it again when told to go on."""
        self._screen.leave()
        self._owner.left()
        self._is_away = True
        # The whole job, as the terminal would; the system stops no job that has no shell to continue it.
        os.kill(0, signal.SIGTSTP)

    def _draw(self, now: float) -> None:
        screen = self._screen
        screen.measure()
        # A frozen picture stands still because nothing is folded; the events wait where they come from.
        if not self.looking.frozen:
            for event in self._owner.events():
                self.view.fold(event)
        said = self._said if now < self._said_until else ""
        scene = replace(self._owner.scene(), said=said, ui_share=self.ui_share)
        self.lines = render(self.view, self.looking, screen.width, screen.height, screen.theme, scene)
        if now >= self._next_touch:
            screen.touch()
            self._next_touch = now + TOUCH_SECONDS
        screen.paint(self.lines)
        self.num_frames += 1
        self._last_draw = now
        self._next_draw = now + self._pause_after(self._cost(now))

    def _cost(self, now: float) -> float:
        """Processor seconds a frame usually takes, everything since the frame before included."""
        spent, self._cpu_before = self._cpu_clock() - self._cpu_before, self._cpu_clock()
        self._costs.append(spent)
        self._shares.append((now, spent))
        passed = now - self._shares[0][0]
        if passed > 1:
            self.ui_share = sum(cost for _, cost in list(self._shares)[1:]) / passed
        # The first frames load and allocate what the others use.
        return statistics.median(self._costs) if len(self._costs) > 2 else 0.0

    @staticmethod
    def _pause_after(cost: float) -> float:
        return max(FRAME_SECONDS, min(cost / CPU_SHARE, LONGEST_WAIT), cost / HARD_SHARE)


def _saved(export: Callable[[], str]) -> str:
    try:
        return f"saved {export()}"
    except (OSError, ValueError) as error:
        return f"not saved: {error}"


def _ignore_background_writes() -> None:
    """Keep the settings of the terminal from stopping the process where it is in the background."""
    if hasattr(signal, "SIGTTOU"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU, signal.SIGTTIN})
