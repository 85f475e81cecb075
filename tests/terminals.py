"""What the tests of the screen share: a real pseudo-terminal with a program in it, read by a terminal emulator."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
import warnings
from pathlib import Path

import pyte

ROOT = Path(__file__).parent.parent
ENTER, LEAVE, SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?25l"
PATIENCE = 60.0


class Terminal:
    """A program in a terminal of its own; everything it writes is kept and drawn.

    The test's side of the terminal stays open, so that the settings can be asked for after the program has ended.
    """

    def __init__(self, arguments, *, width=80, height=24, term="xterm-256color", cwd=None, **environ):
        self.raw = b""
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        self.slave = os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY)
        self.resize(width, height)
        self.modes = termios.tcgetattr(self.slave)
        with warnings.catch_warnings():
            # Frameworks that other tests have imported warn of forks; this child becomes another program at once.
            warnings.simplefilter("ignore")
            self.pid = os.fork()
        if self.pid == 0:
            self._become(slave, arguments, term, cwd, environ)
        os.close(slave)
        self.status = None

    def _become(self, slave, arguments, term, cwd, environ):
        try:
            os.setsid()
            # As from a shell, even where the tests run under nohup or in the background, which ignore these.
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for descriptor in (0, 1, 2):
                os.dup2(slave, descriptor)
            os.closerange(3, 256)
            os.chdir(cwd or "/")
            unwanted = ("CI", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "RANK", "WORLD_SIZE", "TMUX")
            kept = {name: value for name, value in os.environ.items() if name not in unwanted}
            kept |= {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
            if term is not None:
                kept["TERM"] = term
            else:
                kept.pop("TERM", None)
            os.execve(sys.executable, [sys.executable, *arguments], kept | environ)
        finally:
            os._exit(127)

    def resize(self, width, height):
        """Give the terminal another size; tells the program by SIGWINCH, as a window does."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.screen.resize(height, width)

    def press(self, keys):
        """Type."""
        os.write(self.master, keys.encode())

    def read(self, seconds=0.05):
        """Take in what was written, waiting so long for the first of it; False once the program's side is closed."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        while ready:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return False
            self.raw += data
            # The emulator does not know every sequence of every terminal.
            with contextlib.suppress(TypeError):
                self._stream.feed(data)
            ready, _, _ = select.select([self.master], [], [], 0)
        return True

    @property
    def text(self):
        """What the screen shows."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def after(self):
        """What was written since the screen was left for the last time, as text."""
        return self.raw.rpartition(LEAVE)[2].decode(errors="replace")

    def wait_for(self, sought, *, within=PATIENCE):
        """Read until the condition holds, or the text is shown."""
        holds = sought if callable(sought) else lambda: sought in self.text
        end = time.monotonic() + within
        while not holds():
            assert time.monotonic() < end, f"waited for {sought!r} in vain:\n{self.text}\n{self.raw[-2000:]!r}"
            # What the program wrote last is read only as its end is seen.
            assert not self.has_ended() or holds(), (
                f"ended before {sought!r}:\n{self.text}\n{self.raw[-3000:].decode()}"
            )
            self.read()

    def has_ended(self):
        """Whether the program has ended; what it wrote last is read."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
            if pid:
                # The system hands on what was written last a little later: read until nothing comes any more.
                known = -1
                while known != len(self.raw):
                    known = len(self.raw)
                    self.read(0.05)
        return self.status is not None

    def wait_for_end(self, *, within=PATIENCE, reads=True):
        """Read until the program has ended; its exit code, negative for a signal."""
        end = time.monotonic() + within
        while not self.has_ended():
            assert time.monotonic() < end, f"did not end:\n{self.text}"
            if reads:
                self.read()
            else:
                time.sleep(0.02)
        return os.waitstatus_to_exitcode(self.status)

    def signal(self, number):
        """Send a signal to the program alone."""
        os.kill(self.pid, number)

    @property
    def is_restored(self):
        """Whether the terminal is as it was before: settings, cursor, screen."""
        left = self.raw.count(ENTER) == 0 or self.raw.rfind(LEAVE) > self.raw.rfind(ENTER)
        cursor = self.raw.rfind(SHOW_CURSOR) >= self.raw.rfind(HIDE_CURSOR)
        return left and cursor and termios.tcgetattr(self.slave) == self.modes

    def close(self):
        """End the program if it runs still."""
        with contextlib.suppress(OSError):
            if not self.has_ended():
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        for descriptor in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
