"""Lines of styled text on a real terminal, through curses. Only one thread calls the methods.

Only ``window.refresh()`` and ``os.write`` send anything: they let other threads run while a terminal does not read.
``doupdate()`` and ``endwin()`` do not, so that a Ctrl-S would stop the training. To leave and take the screen again,
the sequences of the terminal are written directly, and curses does not notice.
"""

from __future__ import annotations

import contextlib
import importlib
import locale
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import Line
from ..theme import Style, Theme, ground_of

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


_IS_WINDOWS = sys.platform == "win32"
_WINDOWS_POLL = 0.05
_NO_INPUT_LIMIT = 100
_USUAL_SIZE = (80, 24)

_KEYS = {
    "KEY_UP": "up", "KEY_DOWN": "down", "KEY_LEFT": "left", "KEY_RIGHT": "right", "KEY_PPAGE": "page up",
    "KEY_NPAGE": "page down", "KEY_HOME": "home", "KEY_END": "end", "KEY_BTAB": "shift-tab", "KEY_ENTER": "enter",
    "KEY_BACKSPACE": "backspace",
}  # fmt: skip
"""Our names of the keys that are no characters, by their names in curses."""

_NAMED = {"\x1b": "escape", "\n": "enter", "\r": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace"}

_window: Any = None
"""The window of curses, which is started once in a process."""


def screen_encoding() -> str:
    """The encoding in which curses draws: that of the locale of the C library.

    Python's own may be another one: under ``LC_ALL=C`` it writes UTF-8, and curses only ASCII.
    """
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_CTYPE, "")
    try:
        return locale.nl_langinfo(locale.CODESET) or "ascii"
    except AttributeError:
        # Windows has no such function.
        return sys.stdout.encoding or "ascii"


class UnusableTerminal(Exception):
    """The terminal cannot show a screen, or has gone; the message says why.

    Args:
        message: The reason.
        is_gone: Whether the terminal has gone.
    """

    def __init__(self, message: str, *, is_gone: bool = False) -> None:
        super().__init__(message)
        self.is_gone = is_gone


class Screen:
    """The terminal of standard input and output while it shows the dashboard.

    Args:
        theme: Colours and characters; may be exchanged at any time.
        modes: The settings to restore.

    Attributes:
        width, height: Cells and rows of the terminal, as of the last `measure`.
        leaving: The sequence that leaves the screen.
        is_abandoned: Whether another thread gave the terminal back because this one was stuck.
    """

    def __init__(self, theme: Theme, modes: TtyModes) -> None:
        self.theme = theme
        self._modes = modes
        self._window: Any = None
        self._curses: Any = None
        self._names: dict[int, str] = {}
        self._shown: list[Line] = []
        self._attributes: dict[tuple[str, str], int] = {}
        self._pairs: dict[int, int] = {}
        self._num_empty = 0
        self._enter = self.leaving = b""
        self._wake_reader, self._wake_writer = os.pipe()
        with contextlib.suppress(AttributeError, OSError):
            os.set_blocking(self._wake_writer, False)
        self.width, self.height = _USUAL_SIZE
        self.is_abandoned = False

    def open(self) -> None:
        """Take the terminal.

        Raises:
            UnusableTerminal: it cannot show a screen; its settings are as before.
        """
        screen_encoding()
        try:
            import curses

            self._curses = curses
            # It raises where initscr() would end the process.
            curses.setupterm(fd=STDOUT)
            if not curses.tigetstr("cup"):
                raise UnusableTerminal(f"TERM={os.environ.get('TERM')!r} cannot place its cursor")

            def sequence(*names: str) -> bytes:
                return b"".join(_unpadded(self._curses.tigetstr(name) or b"") for name in names)

            self._enter = sequence("smcup", "smkx", "civis")
            self.leaving = sequence("sgr0", "op", "rmkx", "cnorm", "rmcup")
            if not sequence("rmcup"):
                self.leaving += b"\r\n"
            # The next calls wait for a terminal that does not read, and hold the GIL.
            if not _IS_WINDOWS and not select.select([], [STDOUT], [], 0)[1]:
                raise UnusableTerminal("the terminal takes no output")
            self._begin()
        except ImportError:
            advice = ": pip install windows-curses" if _IS_WINDOWS else ""
            raise UnusableTerminal(f"Python has no curses here{advice}") from None
        except (curses.error, OSError, ValueError) as error:
            self.close()
            raise UnusableTerminal(f"TERM={os.environ.get('TERM')!r}: {error}") from error

    def _begin(self) -> None:
        """Start curses, or take the screen again that an earlier run in this process has left."""
        global _window
        was_left = _window is not None
        _window = self._window = _window if was_left else self._curses.initscr()
        self._set_up()
        if was_left:
            self._send(self._enter)
            self.repaint()

    def _send(self, sequence: bytes) -> None:
        with contextlib.suppress(OSError):
            while sequence:
                sequence = sequence[os.write(STDOUT, sequence) :]

    def _set_up(self) -> None:
        curses, window = self._curses, self._window
        self._names = {getattr(curses, name): key for name, key in _KEYS.items() if hasattr(curses, name)}
        # Without them not one colour sequence is sent.
        colours = (curses.start_color, curses.use_default_colors) if self.theme.num_colours else ()
        # A terminal may lack any of these and still show a screen.
        for attempt in (
            curses.noecho, curses.cbreak, lambda: window.keypad(True), lambda: window.nodelay(True),
            lambda: window.leaveok(True), lambda: window.scrollok(False), lambda: curses.set_escdelay(25),
            lambda: curses.curs_set(0), *colours, self._modes.set_ours,
        ):  # fmt: skip
            with contextlib.suppress(curses.error, OSError, AttributeError):
                attempt()
        self._shown, self._num_empty = [], 0

    def measure(self) -> None:
        """Ask the terminal for its size, and follow it.

        Asked, not told: no KEY_RESIZE comes where somebody else handles SIGWINCH.

        Raises:
            UnusableTerminal: the terminal is gone.
        """
        try:
            size: tuple[int, int] = tuple(os.get_terminal_size(STDOUT))  # type: ignore[assignment]
        except OSError as error:
            raise UnusableTerminal(f"the terminal is gone ({error.strerror})", is_gone=True) from error
        if size == (0, 0):
            size = _USUAL_SIZE
        if size != (self.width, self.height) or not self._shown:
            self.width, self.height = size
            with contextlib.suppress(self._curses.error):
                self._curses.resizeterm(self.height, self.width)
            self.repaint()

    def repaint(self) -> None:
        """Send everything with the next `paint`, for whatever somebody else wrote on the screen."""
        self._shown = [()] * self.height
        self._window.clear()

    def touch(self) -> None:
        """Send every cell again with the next `paint`, without clearing the screen first."""
        self._window.redrawwin()

    def paint(self, lines: Sequence[Line]) -> None:
        """Show these lines; only what changed is sent."""
        window, error, theme = self._window, self._curses.error, self.theme
        for row, line in enumerate(lines[: self.height]):
            if self._shown[row] == line:
                continue
            self._shown[row] = line
            # The last cell of the last row cannot be followed by the cursor: curses draws it and complains.
            with contextlib.suppress(error):
                window.move(row, 0)
                window.clrtoeol()
                for text, style in line:
                    key = theme.name, style
                    if key not in self._attributes:
                        look = theme.styles.get(style, Style())
                        self._attributes[key] = attribute_of(look, theme.num_colours, self._pairs, self._curses)
                    window.addstr(text, self._attributes[key])
        window.refresh()

    def wait(self, seconds: float, *, for_keys: bool = True) -> None:
        """Return when a key was pressed, `wake` was called, or the time is up.

        Not ``for_keys`` while another program reads them.
        """
        if _IS_WINDOWS:
            time.sleep(min(seconds, _WINDOWS_POLL))
            return
        readers = [self._wake_reader, STDIN] if for_keys else [self._wake_reader]
        ready, _, _ = select.select(readers, [], [], max(seconds, 0))
        if self._wake_reader in ready:
            os.read(self._wake_reader, 4096)
        self._num_empty = self._num_empty + 1 if STDIN in ready else 0

    def wake(self) -> None:
        """End `wait`. From any thread or signal handler."""
        # There the wait is short by itself, and nobody would empty the pipe.
        if _IS_WINDOWS:
            return
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"!")

    def keys(self) -> list[str]:
        """The keys pressed since the last call: characters, and names such as "up", "ctrl-l", "escape".

        Raises:
            UnusableTerminal: the terminal is gone.
        """
        pressed: list[str] = []
        while True:
            try:
                key = self._window.get_wch()
            except self._curses.error:
                break
            name = self._names.get(key, "") if isinstance(key, int) else _name_of(key)
            if name:
                pressed.append(name)
        if pressed:
            self._num_empty = 0
        elif self._num_empty > _NO_INPUT_LIMIT:
            raise UnusableTerminal("the terminal is gone (nothing can be read)", is_gone=True)
        return pressed

    def leave(self) -> None:
        """Give the terminal back for a while; `come_back` takes it again."""
        if _IS_WINDOWS:
            self._curses.endwin()
        else:
            # The cursor goes to the last row, for terminals that have but one screen.
            last_row = self._curses.tparm(self._curses.tigetstr("cup"), self.height - 1, 0)
            self._send(_unpadded(last_row) + self.leaving)
        self._modes.restore()

    def come_back(self) -> None:
        """Take the terminal again."""
        self._modes.set_ours()
        if not _IS_WINDOWS:
            self._send(self._enter)
        self.repaint()

    def close(self) -> None:
        """Give the terminal back as it was found, unless that was done without us. Safe to call twice."""
        if self.is_abandoned:
            return
        if self._window is not None:
            self._window = None
            self.leave()
        self._modes.restore()


def _name_of(character: str) -> str:
    """The name of a key that is a character; "" for one that cannot be shown."""
    if character in _NAMED:
        return _NAMED[character]
    if character < " ":
        return "ctrl-" + chr(ord(character) + 96)
    return character if character.isprintable() else ""


def _unpadded(sequence: bytes) -> bytes:
    """A sequence without its pauses, such as ``$<5>`` for old terminals, which would be shown as text.

    >>> _unpadded(b"\\x1b[m$<2>")
    b'\\x1b[m'
    """
    return re.sub(rb"\$<[\d.]+[*/]*>", b"", sequence)


def attribute_of(style: Style, num_colours: int, pairs: dict[int, int], curses: Any) -> int:
    """The attribute that curses draws a style with.

    Args:
        style: The style.
        num_colours: Colours of the theme: 256, 8 or 0.
        pairs: Colour -> number of its pair; grows.
        curses: The module, started.
    """
    attribute: int = curses.A_NORMAL
    flags = (style.bold, curses.A_BOLD), (style.dim, curses.A_DIM), (style.reverse, curses.A_REVERSE)
    for wanted, flag in flags:
        attribute |= flag if wanted else 0
    if not num_colours:
        return attribute
    colour = style.colour if min(num_colours, curses.COLORS) >= 256 else style.colour8
    if colour is not None:
        with contextlib.suppress(curses.error, ValueError):
            if colour not in pairs:
                number = len(pairs) + 1
                try:
                    curses.init_pair(number, colour, -1)
                except curses.error:
                    # A terminal without default colours.
                    curses.init_pair(number, colour, curses.COLOR_BLACK)
                pairs[colour] = number
            attribute |= curses.color_pair(pairs[colour])
    return attribute


LIMIT_SECONDS = 0.2
"""Longest wait for an answer, once in a program."""

# A terminal that does not know the first question still answers the second, so that nobody waits for the limit.
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_ANSWER = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})/([0-9a-fA-F]{1,4})")
_END = re.compile(rb"\x1b\[\?[0-9;]*c")
_MOST = 4096


def find_ground(environ: Mapping[str, str] = os.environ) -> str:
    """The ground: "dark", "light", or "" where the terminal does not say."""
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
