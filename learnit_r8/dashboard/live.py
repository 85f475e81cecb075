"""Live: the dashboard of the training in this process, a listener. On a screen if it can be, else in plain lines.

The training thread only appends to a queue. Whatever goes wrong on the screen ends the screen, never the training.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable

from .. import events
from .choice import why_plain
from .plain import PlainLog
from .showing import Asks, Showing
from .text import clean


class Live:
    """A listener that shows the run on the terminal while it lasts, or as plain lines where there is none.

    Args:
        requests: What keys act on.
        folder: The run's folder: printed text goes to ``output.log`` in it, exports too; "" for none.
        captures: Whether to keep printed text off the screen.
        clock: Returns seconds, monotonic.
    """

    def __init__(
        self,
        requests: Asks,
        *,
        folder: str | os.PathLike[str] = "",
        captures: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._early: deque[events.Event] = deque(maxlen=100)
        self._run: events.RunStarted | None = None
        self._plain = PlainLog()
        self._showing = Showing(
            requests, folder=os.fspath(folder), captures=captures, clock=clock, ended=self._screen_ended
        )
        self._tell: events.Listener = self._wait_for_start

    def __call__(self, event: events.Event) -> None:
        """Take in an event. On the training thread: no drawing, no waiting."""
        self._tell(event)

    @property
    def wants_surveys(self) -> bool:
        """Whether the screen is on: plain lines do not show them."""
        return self._showing.is_on

    def _wait_for_start(self, event: events.Event) -> None:
        self._early.append(event)
        if not isinstance(event, events.RunStarted):
            return
        self._run = event
        reason = why_plain()
        if reason:
            self._tell = self._plain
            # Not for those who expect it: a pipe, a batch job.
            if sys.stderr is not None and sys.stderr.isatty():
                self._plain.say(f"plain lines, no screen: {clean(reason)}")
        else:
            self._tell = self._on_screen
        # Told before the screen opens, for its first frame to know them.
        for early in self._early:
            self._tell(early)
        self._early.clear()
        if not reason:
            self._showing.open()

    def _on_screen(self, event: events.Event) -> None:
        self._showing.hear(event)
        if isinstance(event, events.RunEnded):
            self._showing.restore()

    def _screen_ended(self, reason: str) -> None:
        """The screen was closed before the run's end: plain lines follow, to nobody if the terminal is gone."""
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
            self._showing.restore()
