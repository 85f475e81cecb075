"""The choice between a screen and plain lines, made from the environment of the process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping

from ..events import launcher
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
