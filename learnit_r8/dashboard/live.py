"""The dashboard of the training in this process: a listener that shows a screen where it can, else plain lines.

The training thread only appends to a queue. An error on the screen ends the screen, never the training.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from .. import events
from ..events import launcher
from ..events.bus import RunControl
from ..events.condenser import Condenser
from ..events.text import clean, counted
from .notebook import NotebookView, is_notebook
from .painter import Painter
from .plain import AsyncWriter, PlainLog
from .state.ui_state import Action, Scene, UiState
from .state.view import View
from .terminal import terminal_hooks
from .terminal.capture import STDERR, Capture
from .terminal.screen import (
    STDIN,
    STDOUT,
    Screen,
    TtyModes,
    UnusableTerminal,
    find_ground,
    is_in_background,
    screen_encoding,
)
from .theme import choose_theme

MOST_QUEUED = 100_000
MOST_LINES = 1000
TAIL_LINES = 20
CONTEXT_LINES = 15
OPEN_SECONDS = 3.0
OPEN_POLL = 0.002
END_SECONDS = 1.0
UNSTICK_TRIES = 10


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
        self._lines, self._num_lines, self._num_read, self._num_told = list[str](), 0, 0, 0
        self._is_detached = self._wants_pause = False
        # What a key has asked for, and what tells whether the training has answered, shown until then.
        self._request: tuple[str, Callable[[], bool]] = "", lambda: True
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
        self._hooks = terminal_hooks.TerminalHooks(self)
        self.is_on = True
        self._hooks.install()
        if self._capture is not None:
            self._capture.start()
        self._thread = threading.Thread(target=self._paint, name="r8-screen", daemon=True)
        self._thread.start()
        end = time.monotonic() + OPEN_SECONDS
        # Not by Event.wait(): the exception of a signal that comes as it takes its lock again would leave that free,
        # and an error about the lock would replace the exception.
        while not self._painter.has_opened.is_set() and time.monotonic() < end:
            time.sleep(OPEN_POLL)
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
            self.view.heard = arrived
            yield event

    def scene(self) -> Scene:
        """The time, the captured output, and whether the run is paused."""
        requests = self._requests
        self._read_output()
        if self._painter.ui.view == "output":
            self._num_read = self._num_lines
        arrived, seconds = self._anchor
        stands = requests.is_paused or self.view.ended is not None
        request, is_answered = self._request
        # This process is alive, whether or not its training steps.
        now = self.view.heard = time.monotonic()
        return Scene(
            now=seconds + (0.0 if stands else now - arrived), clock=now, output=self._lines,
            num_output=self._num_lines, num_unread=self._num_lines - self._num_read, is_paused=requests.is_paused,
            folder=self._folder, said="" if is_answered() else request,
        )  # fmt: skip

    def _read_output(self) -> None:
        new = self._capture.new_lines() if self._capture is not None else []
        self._num_lines += len(new)
        self._lines = (self._lines + new)[-MOST_LINES:]

    def act(self, action: Action) -> str:
        """Pass on the request of a key; the training answers after its step."""
        requests = self._requests
        match action:
            case Action.SAVE:
                requests.save()
                before = self.view.saved
                self._request = "saving after this step...", lambda: self.view.saved is not before
            case Action.STOP:
                requests.stop("requested on the screen")
                self._request = "stopping after this step, and saving...", lambda: self.view.ended is not None
            case Action.COOL_DOWN:
                try:
                    requests.cool_down(self._painter.ui.asked, "on the screen")
                except ValueError as error:
                    return f"no cool-down: {error}"
                return "cool-down requested, after this step..."
            case Action.PAUSE:
                # A request counts too: the second press may come before the step has ended.
                if requests.is_paused or self._wants_pause:
                    self._wants_pause = False
                    requests.resume()
                    return "going on"
                if launcher.num_ranks_of() > 1:
                    return "no pause: several processes train together"
                self._wants_pause = True
                requests.pause("requested on the screen")
                self._request = (
                    "pausing after this step...", lambda: requests.is_paused or not self._wants_pause
                )  # fmt: skip
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
        self._read_output()
        num_new, self._num_told = self._num_lines - self._num_told, self._num_lines
        for line in self._lines[len(self._lines) - min(num_new, CONTEXT_LINES) :]:
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
            self._read_output()
            for line in self._lines[-TAIL_LINES:]:
                writer.write(STDOUT, f"{clean(line)}\n")
            for event in self.events():
                view.fold(event)
            for text in _farewell(view, self._folder):
                writer.write(STDERR, f"r8 {clean(text)}\n")
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


def _farewell(view: View, folder: str) -> Iterator[str]:
    """What is said of a run where its screen was."""
    name = view.run.name if view.run and view.run.name else "run"
    how = "left" if view.ended is None else view.ended.how
    loss = "" if view.last is None else f", loss {view.last.last_loss:.4g}"
    best = "" if view.best is None else f", smoothed at best {view.best.value:.4g} at step {view.best.step:,}"
    alerts = f", {counted(view.num_alerts, 'warning')}" if view.num_alerts else ""
    yield f"{name} {how} after {view.step:,} steps, {view.seconds:,.0f} s{loss}{best}{alerts}"
    if folder:
        yield f"see it again: learnit-r8 replay {folder}"


def why_plain(environ: Mapping[str, str] = os.environ) -> str:
    """Why this process shows plain lines and no screen; "" if it can show the screen.

    ``R8_UI=plain`` forbids the screen, ``R8_UI=screen`` asks for it under CI and on every rank too.
    """
    wanted = environ.get("R8_UI", "")
    if wanted == "plain":
        return "R8_UI=plain"
    if not (_is_terminal(sys.stdout, STDOUT) and _is_terminal(sys.stdin, STDIN)):
        return "standard input or output is no terminal"
    if environ.get("TERM", "") in ("", "dumb", "unknown") and sys.platform != "win32":
        return f"TERM is {environ.get('TERM')!r}"
    if wanted != "screen":
        if environ.get("CI", "") not in ("", "0", "false"):
            return "CI is set"
        if launcher.rank_of(environ):
            return "another rank has the screen"
    if threading.current_thread() is not threading.main_thread():
        return "the run is not on the main thread"
    if terminal_hooks.is_taken():
        return "another run has the screen"
    if is_in_background():
        return "the process is in the background"
    return ""


def _is_terminal(stream: object, descriptor: int) -> bool:
    """Whether the stream of Python and the descriptor behind it are both a terminal."""
    try:
        return bool(stream is not None and stream.isatty() and os.isatty(descriptor))  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False


class Live:
    """A listener that shows the run on the terminal while it lasts, or as plain lines where there is none.

    Args:
        requests: Takes the requests of keys: stop, save, pause.
        folder: The run folder, for ``output.log`` (printed text) and exports; "" for none.

    Attributes:
        wants_surveys: Whether there will be a screen; plain lines do not show surveys.
    """

    is_on_terminal = True

    def __init__(self, requests: RunControl, *, folder: str | os.PathLike[str]) -> None:
        self._early: deque[events.Event] = deque(maxlen=100)
        self._run: events.RunStarted | None = None
        self._plain = PlainLog()
        self._session = ScreenSession(requests, folder=os.fspath(folder), ended=self._screen_ended)
        self._tell: events.Listener = self._wait_for_start
        # R8_UI=plain wants lines there, too.
        wants_view = os.environ.get("R8_UI") != "plain" and not launcher.rank_of()
        self._is_screen_off = False
        self._is_in_notebook = wants_view and is_notebook()
        self.wants_surveys = self._is_in_notebook or not why_plain()

    def __call__(self, event: events.Event) -> None:
        """Take in an event. On the training thread: no drawing, no waiting."""
        self._tell(event)

    def _wait_for_start(self, event: events.Event) -> None:
        self._early.append(event)
        if not isinstance(event, events.RunStarted):
            return
        self._run = event
        reason = why_plain()
        if self._is_in_notebook:
            self._tell = NotebookView()
        elif reason:
            self._tell = self._plain
            # A pipe or a batch job gets plain lines without an explanation.
            if sys.stderr is not None and sys.stderr.isatty():
                self._plain.say(f"plain lines, no screen: {clean(reason)}")
        else:
            self._tell = self._on_screen
        # Before the screen opens, so that its first frame shows them.
        for early in self._early:
            self._tell(early)
        self._early.clear()
        if not reason and not self._is_in_notebook:
            self._session.open()

    def _on_screen(self, event: events.Event) -> None:
        if self._is_screen_off:
            with contextlib.suppress(OSError, ValueError):
                self._plain(event)
        else:
            self._session.hear(event)
        if isinstance(event, events.RunEnded):
            self._session.restore()

    def _screen_ended(self, reason: str) -> None:
        """Go on with plain lines: the screen closed before the end of the run, maybe with the terminal."""
        with contextlib.suppress(OSError, ValueError):
            if reason:
                self._plain.say(f"the screen is off, the training goes on: {clean(reason)}")
            if self._run is not None:
                self._plain(self._run)
        self._is_screen_off = True
