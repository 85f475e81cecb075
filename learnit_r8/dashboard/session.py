"""The screen of a training: its painter, its thread, the captured output, and how the terminal comes back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from .. import events
from ..events import launcher
from ..events.condenser import Condenser
from ..events.system import SystemMonitor
from ..events.text import clean, counted
from .painter import Painter
from .plain import AsyncWriter
from .state.ui_state import Action, Scene, UiState
from .state.view import View
from .terminal.capture import STDERR, Capture
from .terminal.screen import Screen, UnusableTerminal, find_ground, screen_encoding
from .terminal.terminal_hooks import TerminalHooks
from .terminal.tty_modes import STDOUT, TtyModes
from .theme import choose_theme

MOST_QUEUED = 100_000
MOST_LINES = 1000
TAIL_LINES = 20
CONTEXT_LINES = 15
OPEN_SECONDS = 3.0
END_SECONDS = 1.0
UNSTICK_TRIES = 10
REQUEST_SECONDS = 600.0


class Request(NamedTuple):
    """A request of a key, shown until it is answered.

    Attributes:
        text: What it asked for.
        is_answered: Tells whether the training has answered it.
        until: Time after which it is no longer shown, as a save may fail.
    """

    text: str
    is_answered: Callable[[], bool]
    until: float


class RunControl(Protocol):
    """The requests that keys make to the training; see `engine.control.Requests`."""

    @property
    def is_paused(self) -> bool: ...

    def stop(self, reason: str = "") -> None: ...

    def save(self) -> None: ...

    def pause(self, reason: str = "") -> None: ...

    def resume(self) -> None: ...

    def cool_down(self, span: str, source: str = "") -> None: ...


class ScreenSession:
    """The screen of the training in this process.

    Args:
        requests: Takes the requests of keys: stop, save, pause.
        folder: The run folder, "" for none.
        ended: Called with the reason, on the thread of the screen, when the screen closes before `restore`; "" if a
            person closed it.

    Attributes:
        is_on: Whether the screen has the terminal.
        view: The run; only the painter folds events into it while the screen is on.
    """

    def __init__(self, requests: RunControl, *, folder: str, ended: Callable[[str], None]) -> None:
        self.is_on = False
        self.view = View()
        self._requests, self._folder, self._ended = requests, folder, ended
        self._queue: deque[tuple[float, events.Event]] = deque(maxlen=MOST_QUEUED)
        self._condenser = Condenser(lambda event: self._queue.append((time.monotonic(), event)))
        self._anchor = (time.monotonic(), 0.0)
        self._lines: list[str] = []
        self._num_lines = self._num_read = 0
        self._is_detached = self._wants_pause = False
        self._request: Request | None = None
        self._monitor = SystemMonitor()
        self._capture: Capture | None = None

    def hear(self, event: events.Event) -> None:
        """Queue an event; on the training thread."""
        self._condenser(event)

    def open(self) -> None:
        """Take the terminal, on the main thread; calls ``ended`` where that fails."""
        self._modes = TtyModes()
        self._screen = Screen(choose_theme(encoding=screen_encoding(), ground=find_ground()), self._modes)
        path = os.path.join(self._folder, "output.log") if self._folder else None
        for place in (path, None):
            with contextlib.suppress(OSError):
                self._capture = Capture(place)
                break
        self._painter = Painter(self._screen, self, UiState(), capture=self._capture)
        self._hooks = TerminalHooks(self)
        self.is_on = True
        self._hooks.install()
        if self._capture is not None:
            self._capture.start()
        self._thread = threading.Thread(target=self._paint, name="r8-screen", daemon=True)
        self._thread.start()
        self._painter.has_opened.wait(OPEN_SECONDS)
        self._hooks.opened()
        if not self.is_on:
            self._hooks.remove()

    def _paint(self) -> None:
        """Run the loop of the screen's thread."""
        reason, is_gone = "", False
        try:
            self._painter.run()
        except UnusableTerminal as error:
            reason, is_gone = str(error), error.is_gone
        except Exception:
            reason = traceback.format_exc().strip().splitlines()[-1]
        if (reason or self._is_detached) and not self._screen.is_abandoned:
            self.is_on = False
            # Where the terminal is gone, print() would raise in the training.
            if self._capture is not None and not is_gone:
                self._capture.stop()
            self._ended(reason)

    def events(self) -> Iterable[events.Event]:
        """The queued events."""
        queue = self._queue
        while queue:
            arrived, event = queue.popleft()
            self._anchor = (arrived, event.seconds)
            yield event

    def scene(self) -> Scene:
        """The time, the captured output, and whether the run is paused."""
        requests, painter = self._requests, self._painter
        new = self._capture.new_lines() if self._capture is not None else []
        if new:
            self._num_lines += len(new)
            self._lines = (self._lines + new)[-MOST_LINES:]
        if painter.ui.view == "output":
            self._num_read = self._num_lines
        arrived, seconds = self._anchor
        stands = requests.is_paused or self.view.ended is not None
        # The request of a key that the training has not answered yet; "" for none.
        request = self._request
        if request is not None and (request.is_answered() or time.monotonic() > request.until):
            request = self._request = None
        return Scene(
            now=seconds + (0.0 if stands else time.monotonic() - arrived),
            output=self._lines,
            num_output=self._num_lines,
            num_unread=self._num_lines - self._num_read,
            is_paused=requests.is_paused,
            folder=self._folder,
            said="" if request is None else request.text,
            load=self._monitor.load(),
        )

    def _ask(self, text: str, is_answered: Callable[[], bool]) -> str:
        self._request = Request(text, is_answered, time.monotonic() + REQUEST_SECONDS)
        return ""

    def act(self, action: Action) -> str:
        """Pass on the request of a key; the training answers after its step."""
        requests = self._requests
        match action:
            case Action.SAVE:
                requests.save()
                before = self.view.saved
                return self._ask("saving after this step...", lambda: self.view.saved is not before)
            case Action.STOP:
                requests.stop("requested on the screen")
                return self._ask("stopping after this step, and saving...", lambda: self.view.ended is not None)
            case Action.COOL_DOWN:
                try:
                    self._requests.cool_down(self._painter.ui.asked, "on the screen")
                except ValueError as error:
                    return f"no cool-down: {error}"
                return "cool-down requested, after this step..."
            case Action.PAUSE:
                # A request counts too: the second press may come before the step has ended.
                if self._requests.is_paused or self._wants_pause:
                    self._wants_pause = False
                    self._request = None
                    self._requests.resume()
                    return "going on"
                if launcher.num_ranks_of() > 1:
                    return "no pause: several processes train together"
                self._wants_pause = True
                self._requests.pause("requested on the screen")
                return self._ask(
                    "pausing after this step...", lambda: self._requests.is_paused or not self._wants_pause
                )
            case Action.DETACH:
                self.detach()
        return ""

    def detach(self) -> None:
        """Close the screen; the training goes on with plain lines."""
        self._is_detached = True
        self._painter.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_SECONDS)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """A block in which the terminal belongs to the caller; begins with the lines that were printed last."""
        if not self.is_on or threading.current_thread() is self._thread or not self._thread.is_alive():
            yield
            return
        self._painter.suspend()
        if self._capture is not None:
            for line in self._capture.lines_since_left(CONTEXT_LINES):
                print(clean(line))
        try:
            yield
        finally:
            self._painter.resume()

    def forked(self) -> None:
        """In a forked child: print to the log of the parent, and draw nothing."""
        self._queue = deque(maxlen=1)
        if self._capture is not None:
            self._capture.after_fork()

    def restore(self) -> None:
        """Give the terminal back for good, and print the last captured lines. Safe to call twice."""
        was_on, is_stuck = self.is_on, self._end_thread()
        self.is_on = False
        if self._capture is not None:
            self._capture.stop()
        self._hooks.remove()
        if was_on and not is_stuck:
            writer, view = AsyncWriter(), self.view
            for line in self._capture.tail(TAIL_LINES) if self._capture is not None else ():
                writer.write(STDOUT, f"{clean(line)}\n")
            for event in self.events():
                view.fold(event)
            name = view.run.name if view.run and view.run.name else "run"
            how = "left" if view.ended is None else view.ended.how
            loss = "" if view.last is None else f", loss {view.last.last_loss:.4g}"
            best = "" if view.best is None else f", smoothed at best {view.best.value:.4g} at step {view.best.step:,}"
            alerts = f", {counted(view.num_alerts, 'warning')}" if view.num_alerts else ""
            farewell = [f"{name} {how} after {view.step:,} steps, {view.seconds:,.0f} s{loss}{best}{alerts}"]
            if self._folder:
                farewell.append(f"see it again: learnit-r8 replay {self._folder}")
            for line in farewell:
                writer.write(STDERR, f"r8 {clean(line)}\n")
            writer.finish(END_SECONDS)

    def _end_thread(self) -> bool:
        """End the thread of the screen; returns whether it was stuck in a terminal that does not read."""
        thread = self._thread
        if threading.current_thread() is thread:
            return False
        self._painter.stop()
        thread.join(END_SECONDS)
        tries = 0
        while thread.is_alive() and tries < UNSTICK_TRIES:
            self._modes.unstick(thread)
            thread.join(0.05)
            tries += 1
        if thread.is_alive():
            # When the thread wakes up, another screen may have the terminal.
            self._screen.is_abandoned = True
            self._hooks.abandon(thread)
            self._modes.abandon(self._screen.leaving)
        return tries > 0
