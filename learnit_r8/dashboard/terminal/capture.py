"""The capture of printed text: to a file while the screen is on, to the terminal when it is off.

``print``, logging and progress bars write through a stand-in for ``sys.stdout`` and ``sys.stderr``; native code and
child processes write to the same file through the descriptor of stderr. It is a file and no pipe, because a run must
not wait for a reader, and its text must survive a crash.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import threading
from collections import deque
from typing import Any, TextIO

from ...state.durable_io import open_output

STDERR = 2
LONGEST_LINE = 10_000
MOST_READ = 64 * 1024


class Capture:
    """Keeps printed text off the terminal.

    Args:
        path: File to append to; None for a temporary file.

    Raises:
        OSError: the file cannot be opened, or is a link.

    Attributes:
        is_on: Whether text goes to the file now.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.is_on = False
        self._unsaved: deque[str] = deque(maxlen=200)
        # Two descriptors of a file: one appends, one reads.
        name = None if path is None else os.fspath(path)
        if name is None:
            descriptor, name = tempfile.mkstemp(prefix="r8-output-")
            os.close(descriptor)
        writer = open_output(name, "a")
        reader = -1
        try:
            reader = os.open(name, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0))
        finally:
            if reader < 0:
                os.close(writer)
        if path is None:
            # Where an open file cannot be removed, the system clears it up some day.
            with contextlib.suppress(OSError):
                os.unlink(name)
        self._fd, self._reader = writer, reader
        self._seen = os.lseek(self._reader, 0, os.SEEK_END)
        self._streams: list[_Stream] = []
        self._swapped: list[tuple[Any, TextIO]] = []
        self._real_stderr: int | None = None

    def start(self) -> None:
        """Stand in for ``sys.stdout``, ``sys.stderr`` and the descriptor of stderr from now on."""
        self._streams = [_Stream(sys.stdout, self, self._fd), _Stream(sys.stderr, self, STDERR)]
        sys.stdout, sys.stderr = self._streams
        # Logging handlers that hold the real stdout write to the stand-in; those on stderr go by descriptor.
        stdout, stand_in, logging = self._streams[0].real, self._streams[0], sys.modules.get("logging")
        loggers = [] if logging is None else [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
        for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", ())}:
            if isinstance(handler, sys.modules["logging"].StreamHandler) and handler.stream is stdout:
                handler.setStream(stand_in)
                self._swapped.append((handler, stdout))
        self.resume()

    def resume(self) -> None:
        """Keep text off the terminal again, after `pause`."""
        if self.is_on:
            return
        for stream in self._streams:
            _flush(stream.real)
        with contextlib.suppress(OSError):
            self._real_stderr = os.dup(STDERR)
            os.dup2(self._fd, STDERR)
        self.is_on = True

    def pause(self) -> None:
        """Let text through to the terminal, until `resume`."""
        if not self.is_on:
            return
        self.is_on = False
        for stream in self._streams:
            stream.finish_line()
        if self._real_stderr is not None:
            os.dup2(self._real_stderr, STDERR)
            os.close(self._real_stderr)
            self._real_stderr = None

    def stop(self) -> None:
        """Put the real streams back. A stand-in that somebody still holds writes to its real stream."""
        self.pause()
        for handler, stream in self._swapped:
            if isinstance(handler.stream, _Stream):
                handler.setStream(stream)
        self._swapped.clear()
        for name, stand_in in zip(("stdout", "stderr"), self._streams, strict=False):
            # Unless somebody has replaced the stand-in.
            if getattr(sys, name) is stand_in:
                setattr(sys, name, stand_in.real)

    def after_fork(self) -> None:
        """Make new locks in a forked child: a thread that does not exist there may have held the old ones."""
        for stream in self._streams:
            stream.lock = threading.RLock()

    def append(self, text: str) -> None:
        """Write whole lines to the file; those that cannot be written are among the new lines all the same."""
        try:
            os.write(self._fd, text.encode("utf-8", errors="backslashreplace"))
        except OSError:
            self._unsaved.extend(text.splitlines())

    def new_lines(self) -> list[str]:
        """The lines since the last call; of very many the last ones."""
        end = os.lseek(self._reader, 0, os.SEEK_END)
        skipped = end - self._seen > MOST_READ
        if skipped:
            self._seen = end - MOST_READ
        os.lseek(self._reader, self._seen, os.SEEK_SET)
        data = os.read(self._reader, end - self._seen)
        whole = data.rfind(b"\n") + 1
        # A line without an end waits for its rest until it is too long, or nothing is captured any more.
        if not self.is_on or (not whole and len(data) > LONGEST_LINE):
            whole = len(data)
        self._seen += whole
        unsaved = [self._unsaved.popleft() for _ in range(len(self._unsaved))]
        return _lines(data[:whole])[1 if skipped else 0 :] + unsaved


class _Stream(io.TextIOBase):
    """A stand-in for a stream: writes whole lines to the capture while it is on, else to the stream."""

    def __init__(self, real: TextIO, capture: Capture, fd: int) -> None:
        self.real = real
        self.lock = threading.RLock()
        self.buffer = _Bytes(self)
        self._capture, self._fd = capture, fd
        self._rest = ""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"text must be str, got {type(text).__name__}.")
        if not self._capture.is_on:
            return self.real.write(text)
        with self.lock:
            *whole, rest = (self._rest + text).split("\n")
            # Keep only the last state of a progress bar.
            self._rest = _overwritten(rest)[-LONGEST_LINE:] + ("\r" if rest.endswith("\r") else "")
        if whole:
            self._capture.append("".join(_overwritten(line) + "\n" for line in whole))
        return len(text)

    def finish_line(self) -> None:
        """Write a line that has no end yet."""
        with self.lock:
            rest, self._rest = self._rest, ""
        if rest:
            self._capture.append(_overwritten(rest) + "\n")

    def flush(self) -> None:
        if not self._capture.is_on:
            self.real.flush()

    def fileno(self) -> int:
        # A child process that gets this as its stdout must not write to the terminal.
        return self._fd if self._capture.is_on else self.real.fileno()

    def isatty(self) -> bool:
        return not self._capture.is_on and self.real.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: the real stream stays open."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.real.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.real.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class _Bytes(io.RawIOBase):
    """The ``buffer`` of a stand-in."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        self._stream.write(bytes(data).decode("utf-8", errors="replace"))
        return len(data)

    def flush(self) -> None:
        self._stream.flush()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing, like the stream."""


def _overwritten(line: str) -> str:
    """A line as its carriage returns leave it.

    >>> _overwritten("10 %\\r20 %\\r")
    '20 %'
    """
    return line.rstrip("\r").rsplit("\r", 1)[-1]


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8", errors="replace")
    return [_overwritten(line)[:LONGEST_LINE] for line in text.removesuffix("\n").split("\n")] if text else []


def _flush(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
