"""The terminal's settings: as found, as the screen wants them, and how to put them back at all costs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any

try:
    import termios
except ImportError:
    # On Windows curses itself restores the modes of the console.
    termios = None  # type: ignore[assignment]

STDIN, STDOUT = 0, 1
_INPUT, _CHARACTERS = 0, 6


class TtyModes:
    """The settings of the terminal, taken down when this is made, before anything touches them."""

    def __init__(self) -> None:
        self._found: list[Any] | None = None if termios is None else termios.tcgetattr(STDIN)
        self._ours: list[Any] | None = None

    def set_ours(self) -> None:
        """Make Ctrl-S, Ctrl-Q, Ctrl-Z and Ctrl-\\ ordinary keys; Ctrl-C stays what it is.

        With flow control on, one Ctrl-S would stop the drawing; Ctrl-Z would stop the process in the middle of it, and
        Ctrl-\\ end it with the screen on.
        """
        if termios is None:
            return
        if self._ours is None:
            self._ours = termios.tcgetattr(STDIN)
            self._ours[_INPUT] &= ~(termios.IXON | termios.IXOFF)
            for name in ("VSUSP", "VDSUSP", "VQUIT", "VLNEXT"):
                if hasattr(termios, name):
                    self._ours[_CHARACTERS][getattr(termios, name)] = b"\0"
        termios.tcsetattr(STDIN, termios.TCSANOW, self._ours)

    def restore(self) -> None:
        """Put the settings back, without waiting for a terminal that does not read."""
        if termios is not None and self._found is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(STDIN, termios.TCSANOW, self._found)

    def unstick(self, thread: threading.Thread) -> None:
        """Discard the output that a terminal does not read, and wake the thread that waits for room to write.

        The flush alone does not wake it; a signal makes the system try the write again, which now succeeds.
        """
        if termios is None or thread.ident is None or not thread.is_alive():
            return
        with contextlib.suppress(termios.error, OSError):
            termios.tcflow(STDOUT, termios.TCOON)
            termios.tcflush(STDOUT, termios.TCOFLUSH)
            signal.pthread_kill(thread.ident, signal.SIGWINCH)

    def abandon(self, sequence: bytes) -> None:
        """Leave the screen without the thread that draws; send the sequence if the terminal takes it."""
        if termios is None:
            return
        self.restore()
        with contextlib.suppress(OSError):
            # A new descriptor: O_NONBLOCK must not change the one that the shell shares.
            terminal = os.open(os.ttyname(STDOUT), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                os.write(terminal, sequence)
            finally:
                os.close(terminal)


def is_in_background() -> bool:
    """Whether the terminal belongs to another job now, and must be left alone."""
    if termios is None:
        return False
    try:
        return os.tcgetpgrp(STDIN) != os.getpgrp()
    except OSError:
        return False
