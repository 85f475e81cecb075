"""Guards: whatever ends or stops the process for a while gives the terminal back first.

Signals: ncurses would end the process at SIGTERM with neither ``finally`` nor ``atexit``, unless Python has a handler
before it starts. Children made by fork share all of this and must do none of it.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .modes import Modes

ENDING_SIGNALS = ("SIGTERM", "SIGHUP")


class Guarded(Protocol):
    """What has taken the terminal."""

    def restore(self) -> None:
        """Give the terminal back for good. Safe to call twice."""
        ...

    def suspended(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the terminal belongs to whoever asks."""
        ...

    def detach(self) -> None:
        """Give the terminal back for good; the training goes on with plain lines."""
        ...

    def forked(self) -> None:
        """This is a forked child."""
        ...


class Guards:
    """The process's hooks while a screen is on.

    Args:
        guarded: What to restore.
    """

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded
        self._pid = os.getpid()
        self._undo: list[Callable[[], None]] = []
        self._handlers: dict[int, Any] = {}

    @property
    def is_parent(self) -> bool:
        """Whether this is the process that took the terminal."""
        return os.getpid() == self._pid

    def install(self) -> None:
        """Hook in. On the main thread, before curses starts."""
        global _current
        self._hold_signals()
        self._replace(sys, "excepthook", self._excepthook(sys.excepthook))
        self._replace(sys, "breakpointhook", self._breakpointhook(sys.breakpointhook))
        self._replace(builtins, "input", self._input(builtins.input))
        atexit.register(self._restore)
        self._undo.append(lambda: atexit.unregister(self._restore))
        _current = self

    def opened(self) -> None:
        """Curses has started: stopping the job is the system's business again."""
        if hasattr(signal, "SIGTSTP") and self._handlers.get(signal.SIGTSTP) is signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def remove(self) -> None:
        """Put every hook back that is still ours; signals only on the main thread."""
        global _current
        if not self.is_parent:
            return
        while self._undo:
            self._undo.pop()()
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                ours = number not in (signal.SIGTERM, getattr(signal, "SIGHUP", 0)) or (
                    signal.getsignal(number) == self._end
                )
                if ours:
                    signal.signal(number, handler)
            self._handlers.clear()
        if _current is self:
            _current = None

    def abandon(self, thread: threading.Thread) -> None:
        """This thread is stuck in curses: nobody else may use it before it is out."""
        global _stuck
        _stuck = thread

    def _hold_signals(self) -> None:
        for name in ENDING_SIGNALS:
            number = getattr(signal, name, None)
            # Somebody's own handler, and nohup's "ignore", stay.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.SIG_DFL
                signal.signal(number, self._end)
        # Curses takes over what it finds at its default: its answer to SIGTSTP draws from inside a signal handler.
        for name, handler in (("SIGTSTP", signal.SIG_IGN), ("SIGWINCH", None)):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = signal.SIG_DFL
                if handler is not None:
                    signal.signal(number, handler)

    def _end(self, number: int, frame: Any) -> None:
        """Unwind the program as a normal exit does: ``finally`` and ``atexit`` run."""
        if self.is_parent:
            raise SystemExit(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _replace(self, place: Any, name: str, value: Any) -> None:
        before = getattr(place, name)
        setattr(place, name, value)

        def undo() -> None:
            if getattr(place, name) is value:
                setattr(place, name, before)

        self._undo.append(undo)

    def _restore(self) -> None:
        if self.is_parent:
            self._guarded.restore()

    def _excepthook(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            # Before the traceback is printed, or it goes to the screen that is about to vanish.
            self._restore()
            before(kind, error, trace)

        return hook

    def _breakpointhook(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def hook(*arguments: Any, **keywords: Any) -> Any:
            wanted = os.environ.get("PYTHONBREAKPOINT", "")
            if not self.is_parent or wanted == "0":
                return before(*arguments, **keywords)
            if arguments or keywords or wanted or before is not sys.__breakpointhook__:
                # Nobody knows how that one asks its questions: it gets the terminal for good.
                self._guarded.detach()
                return before(*arguments, **keywords)
            import pdb

            with self._guarded.suspended():
                debugger = pdb.Pdb()
            # The caller's frame, or it would stop in this one; the last thing done here, or it would stop in that.
            return debugger.set_trace(sys._getframe(1))

        return hook

    def _input(self, before: Callable[..., str]) -> Callable[..., str]:
        def hook(prompt: object = "", /) -> str:
            if not self.is_parent:
                return before(prompt)
            with self._guarded.suspended():
                return before(prompt)

        return hook


_current: Guards | None = None
_stuck: threading.Thread | None = None


def is_taken() -> bool:
    """Whether a screen is on in this process, or was left by a thread that is stuck in it."""
    return (_current is not None and _current.is_parent) or (_stuck is not None and _stuck.is_alive())


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """A ``with`` block in which the terminal is yours: the screen is left, and comes back a moment afterwards.

    ``breakpoint()`` and ``input()`` do this by themselves. Without a screen nothing happens.

    >>> with suspended():
    ...     pass
    """
    if _current is None or not _current.is_parent:
        yield
        return
    with _current._guarded.suspended():
        yield


_forking = threading.local()


def _before_fork() -> None:
    """Hold back ending signals for the fork: Python forgets those that come to a child before it is ready."""
    _forking.mask = None
    if is_taken():
        numbers = {getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)}
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def _after_fork() -> None:
    """Let them come."""
    mask = getattr(_forking, "mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    """A forked child neither draws nor cleans up, and ends by a signal as if there were no screen."""
    guards = _current
    if guards is not None and not guards.is_parent:
        for number, handler in guards._handlers.items():
            if handler is signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
        guards._guarded.forked()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def modes_of_terminal() -> Modes:
    """The terminal's settings, taken down now."""
    modes = Modes()
    modes.remember()
    return modes
