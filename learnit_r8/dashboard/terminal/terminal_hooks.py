"""Hooks of the process while a screen is on: whatever ends it, or stops it for a while, gives the terminal back first.

Children made by fork share all of this and must do none of it.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

ENDING = frozenset(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class EndingSignals:
    """Has SIGTERM and SIGHUP raise SystemExit, so that ``finally`` and ``atexit`` give the terminal back.

    ncurses would end the process at SIGTERM with neither of them, unless Python has a handler before it starts. For the
    main thread; also as a ``with`` block.

    Attributes:
        held: Numbers of the signals that were taken over: those that had their default action.
    """

    def __init__(self) -> None:
        self.held: list[int] = []
        self._pid = os.getpid()

    def hold(self) -> None:
        """Take over the signals; somebody's own handler, and nohup's "ignore", stay."""
        for number in ENDING:
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

    __enter__ = hold

    def __exit__(self, *error: object) -> None:
        self.release()


class TerminalHooks:
    """The hooks of the process while a screen is on.

    Args:
        owner: Has the terminal: gives it back for good with ``restore`` and ``detach``, for a while with ``suspended``,
            and does nothing with it in a child that was ``forked``.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._pid = os.getpid()
        self._undo: list[Callable[[], None]] = []
        self._ending = EndingSignals()
        self._defaults: list[int] = []

    @property
    def is_parent(self) -> bool:
        """Whether this is the process that took the terminal."""
        return os.getpid() == self._pid

    def install(self) -> None:
        """Install the hooks. On the main thread, before curses starts."""
        global _current
        self._ending.hold()
        # Curses takes over what it finds at its default: its answer to SIGTSTP draws from inside a signal handler.
        for name, handler in (("SIGTSTP", signal.SIG_IGN), ("SIGWINCH", None)):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                self._defaults.append(number)
                if handler is not None:
                    signal.signal(number, handler)
        self._replace(sys, "excepthook", self._excepthook)
        self._replace(sys, "breakpointhook", self._breakpointhook)
        self._replace(builtins, "input", self._input)
        atexit.register(self._restore)
        self._undo.append(lambda: atexit.unregister(self._restore))
        _current = self

    def opened(self) -> None:
        """Let the system stop the job again, now that curses has started."""
        if hasattr(signal, "SIGTSTP") and signal.SIGTSTP in self._defaults:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def remove(self) -> None:
        """Remove the hooks that nobody has replaced since; signals only on the main thread."""
        global _current
        if not self.is_parent:
            return
        while self._undo:
            self._undo.pop()()
        if threading.current_thread() is threading.main_thread():
            self._ending.release()
            while self._defaults:
                signal.signal(self._defaults.pop(), signal.SIG_DFL)
        if _current is self:
            _current = None

    def abandon(self, thread: threading.Thread) -> None:
        """Note that a thread is stuck in curses: no other thread may use curses until it returns."""
        global _stuck
        _stuck = thread

    def _replace(self, place: Any, name: str, hook: Callable[..., Any]) -> None:
        """Put a hook in a place; it gets what was there before as its first argument."""
        before = getattr(place, name)
        value = functools.partial(hook, before)
        setattr(place, name, value)

        def undo() -> None:
            if getattr(place, name) is value:
                setattr(place, name, before)

        self._undo.append(undo)

    def _restore(self) -> None:
        if self.is_parent:
            self._owner.restore()

    def _excepthook(self, before: Callable[..., Any], *error: Any) -> None:
        # First, or the traceback goes to the screen, which is about to vanish.
        self._restore()
        before(*error)

    def _breakpointhook(self, before: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        wanted = os.environ.get("PYTHONBREAKPOINT", "")
        if not self.is_parent or wanted == "0":
            return before(*arguments, **keywords)
        if arguments or keywords or wanted or before is not sys.__breakpointhook__:
            # Another debugger may read keys in its own way: it gets the terminal for good.
            self._owner.detach()
            return before(*arguments, **keywords)
        import pdb

        with self._owner.suspended():
            debugger = pdb.Pdb()
        # With the frame of the caller and as the last statement, or the debugger would stop in this function.
        return debugger.set_trace(sys._getframe(1))

    def _input(self, before: Callable[..., str], prompt: object = "", /) -> str:
        if not self.is_parent:
            return before(prompt)
        with self._owner.suspended():
            return before(prompt)


_current: TerminalHooks | None = None
_stuck: threading.Thread | None = None


def is_taken() -> bool:
    """Whether this process has a screen, or a thread of it is stuck in curses."""
    return (_current is not None and _current.is_parent) or (_stuck is not None and _stuck.is_alive())


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """A ``with`` block in which the terminal is yours: the screen goes, and comes back a moment after the block.

    ``breakpoint()`` and ``input()`` do this by themselves. Without a screen the block changes nothing.

    >>> with suspended():
    ...     pass
    """
    if _current is None or not _current.is_parent:
        yield
        return
    with _current._owner.suspended():
        yield


_forking = threading.local()


def _before_fork() -> None:
    """Block the ending signals during the fork: Python loses those that reach a child before it is ready."""
    _forking.mask = None
    if is_taken():
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _after_fork() -> None:
    """Unblock the ending signals."""
    mask = getattr(_forking, "mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    """Undo the hooks in a forked child: it neither draws nor cleans up, and signals end it as usual."""
    hooks = _current
    if hooks is not None and not hooks.is_parent:
        for number in (*hooks._ending.held, *hooks._defaults):
            signal.signal(number, signal.SIG_DFL)
        hooks._owner.forked()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
