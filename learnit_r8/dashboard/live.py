"""The dashboard of the training in this process: a listener that shows a screen where it can, else plain lines.

The training thread only appends to a queue. An error on the screen ends the screen, never the training.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping

from .. import events
from ..events import launcher
from ..events.text import clean
from .plain import PlainLog
from .session import RunControl, ScreenSession
from .terminal import terminal_hooks
from .terminal.tty_modes import STDIN, STDOUT, is_in_background


def why_plain(environ: Mapping[str, str] | None = None) -> str:
    """Why this process shows plain lines and no screen; "" if it can show the screen.

    ``R8_UI=plain`` forbids the screen, ``R8_UI=screen`` asks for it under CI and on every rank too.
    """
    environ = os.environ if environ is None else environ
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
    """

    is_on_terminal = True

    def __init__(self, requests: RunControl, *, folder: str | os.PathLike[str]) -> None:
        self._early: deque[events.Event] = deque(maxlen=100)
        self._run: events.RunStarted | None = None
        self._plain = PlainLog()
        self._session = ScreenSession(requests, folder=os.fspath(folder), ended=self._screen_ended)
        self._tell: events.Listener = self._wait_for_start
        self._is_in_notebook = _wants_notebook()

    def __call__(self, event: events.Event) -> None:
        """Take in an event. On the training thread: no drawing, no waiting."""
        self._tell(event)

    @property
    def wants_surveys(self) -> bool:
        """Whether there is or will be a screen; plain lines do not show surveys.

        The scheduler asks when it adds the listener, before the screen opens.
        """
        return self._session.is_on or self._is_in_notebook or not why_plain()

    def _wait_for_start(self, event: events.Event) -> None:
        self._early.append(event)
        if not isinstance(event, events.RunStarted):
            return
        self._run = event
        reason = why_plain()
        if self._is_in_notebook:
            from .notebook import NotebookView

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
        self._tell = self._after_screen

    def _after_screen(self, event: events.Event) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._plain(event)
        if isinstance(event, events.RunEnded):
            self._session.restore()


def _wants_notebook() -> bool:
    """Whether to show the run as a view of a notebook; ``R8_UI=plain`` wants lines there, too."""
    module = sys.modules.get("IPython")
    if module is None or os.environ.get("R8_UI") == "plain" or launcher.rank_of():
        return False
    from .notebook import is_notebook

    return is_notebook()
