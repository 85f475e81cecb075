"""The ground of a terminal, dark or light, as far as it says so: in COLORFGBG, or asked with OSC 11, within a limit."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import select
import sys
import time
from collections.abc import Mapping

from ..theme import ground_of
from .tty_modes import STDIN, STDOUT

LIMIT_SECONDS = 0.2
"""Longest wait for an answer, once in a program."""

# A terminal that does not know the first question still answers the second, so that nobody waits for the limit.
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_ANSWER = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})")
_END = re.compile(rb"\x1b\[\?[0-9;]*c")
_MOST = 4096


def find_ground(environ: Mapping[str, str] | None = None) -> str:
    """The ground: "dark", "light", or "" where the terminal does not say."""
    environ = os.environ if environ is None else environ
    told = ground_of(environ)
    if told or environ.get("TERM", "") in ("", "dumb", "linux") or sys.platform == "win32":
        return told
    if not (os.isatty(STDIN) and os.isatty(STDOUT)):
        return ""
    with contextlib.suppress(OSError, ImportError, ValueError):
        # Without it there will be no screen, only lines: nothing else may go to the terminal.
        importlib.import_module("curses")
        return ask_ground(STDIN, STDOUT)
    return ""


def ask_ground(reader: int, writer: int, limit: float = LIMIT_SECONDS) -> str:
    """Ask a terminal for the colour of its ground; "" without an answer.

    Args:
        reader, writer: Descriptors of the terminal.
        limit: Seconds to wait.
    """
    import termios
    import tty

    # Not while the person types ahead: what is read here would be lost to the program.
    if select.select([reader], [], [], 0)[0]:
        return ""
    before = termios.tcgetattr(reader)
    # Opened anew, so that only this write does not wait: output that was stopped (Ctrl-S) would hold the program up.
    asked = os.open(os.ttyname(writer), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        tty.setcbreak(reader, termios.TCSANOW)
        os.write(asked, _QUESTION)
        answer, until = b"", time.monotonic() + limit
        while not _END.search(answer) and len(answer) < _MOST:
            left = until - time.monotonic()
            if left <= 0 or not select.select([reader], [], [], left)[0]:
                break
            answer += os.read(reader, 256)
    finally:
        os.close(asked)
        termios.tcsetattr(reader, termios.TCSANOW, before)
    return ground_in(answer)


def ground_in(answer: bytes) -> str:
    """The ground that an answer to OSC 11 tells.

    >>> ground_in(b"\\x1b]11;rgb:ffff/ffff/dddd\\x1b\\\\"), ground_in(b"\\x1b]11;rgb:1e/1e/1e\\x07"), ground_in(b"")
    ('light', 'dark', '')
    """
    found = _ANSWER.search(answer)
    if found is None:
        return ""
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in found.groups())
    return "light" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "dark"
