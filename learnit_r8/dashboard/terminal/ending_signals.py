"""SIGTERM and SIGHUP as an exit of the program, so that ``finally`` and ``atexit`` give the terminal back.

ncurses would end the process at SIGTERM with neither of them, unless Python has a handler before it starts.
"""

from __future__ import annotations

import os
import signal
from typing import Any

NAMES = ("SIGTERM", "SIGHUP")
NUMBERS = frozenset(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class EndingSignals:
    """Has the signals that end a process raise SystemExit; also as a ``with`` block. For the main thread.

    Attributes:
        held: Numbers of the signals that were taken over: those that had their default action.
    """

    def __init__(self) -> None:
        self.held: list[int] = []
        self._pid = os.getpid()

    def hold(self) -> None:
        """Take over the signals; somebody's own handler, and nohup's "ignore", stay."""
        for number in NUMBERS:
            if signal.getsignal(number) is signal.SIG_DFL:
                self.held.append(number)
                signal.signal(number, self._end)

    def release(self) -> None:
        """Put the default action back, unless somebody has set another handler since."""
        while self.held:
            number = self.held.pop()
            if signal.getsignal(number) == self._end:
                signal.signal(number, signal.SIG_DFL)

    def _end(self, number: int, frame: Any) -> None:
        if os.getpid() == self._pid:
            raise SystemExit(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def __enter__(self) -> None:
        self.hold()

    def __exit__(self, *error: object) -> None:
        self.release()
