"""Signals: a run that a signal ends is saved first, between two steps, and then ends as without this package.

Ctrl-C, a closing terminal, ``kill`` and a cluster's preemption notice all arrive in the middle of a step, where model
and scheduler are not consistent. So the handlers only note the signal. A second one ends the step, but not a call of
this package, which would leave half of its changes: that may finish first, unless it takes too long (a disk or a rank
hangs).
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that wait for the end of the step; others are not handled, nor is SIGHUP on Windows."""

SAME_SECONDS = 0.2
"""A signal so soon after another counts as the same: launchers forward what the terminal has sent to all processes."""

HOLD_SECONDS = 5.0
"""Longest time that a second signal waits for a call of this package to end; a third one does not wait."""

FIRST_REMINDER, MOST_BETWEEN = 0.01, 0.25
"""Seconds before a signal that waits is sent again, and the longest time between two such reminders."""

_PACKAGE = __name__.partition(".")[0]
_PROGRAMS = (f"{_PACKAGE}.cli", f"{_PACKAGE}.testing")


class Preempted(SystemExit):
    """The run was saved and ended because of a signal; the process exits with 128 + its number, as is usual in shells.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.signum).name}"


Scope = Callable[[FrameType | None], bool]


def running(function: Callable[..., Any]) -> Scope:
    """The scope of a run driven by a function or a generator: it is active while that is on the stack.

    A generator that is suspended at a yield is not.
    """
    code = function.__code__

    return lambda frame: any(each.f_code is code for each in _stack_of(frame))


def is_inside(frame: FrameType | None) -> bool:
    """Whether a frame is of this package, or of a function of the user that it has called."""
    names = (each.f_globals.get("__name__", "") for each in _stack_of(frame))
    return any(name.startswith(f"{_PACKAGE}.") and not name.startswith(_PROGRAMS) for name in names)


def _stack_of(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that have called it."""
    # Of None, walk_stack() would begin with the present frame.
    return (each for each, _ in traceback.walk_stack(frame)) if frame is not None else iter(())


class SignalWatch:
    """Notes signals during a run, and acts on them later as the handlers before it would have.

    Args:
        wake: Called in the handler, to make the training thread check for a signal soon.
        clock: Returns seconds.
        count_steps: Returns how many steps the run has made.

    Attributes:
        received: The signal that waits for the end of the step; None if there is none.
        before_exit: Functions called before the exception that ends the run is raised, to restore a terminal.
        scope: ``(frame)``, returns whether the run is active in the code that a signal interrupts; if not, the signal
            goes to the earlier handler. None if that is unknown: then it always is.
    """

    def __init__(
        self, wake: Callable[[], None], clock: Callable[[], float] = time.monotonic, *,
        count_steps: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self._wake, self._clock = wake, clock
        self.count_steps = count_steps
        self._handlers: dict[int, _Handler] = {}
        self._since = 0.0
        self._urgent_since: float | None = None
        self._reminder: object = None
        self._is_reminder = False
        self._ttys: list[int] = []
        self.received: int | None = None
        self.before_exit: list[Callable[[], object]] = []
        self.scope: Scope | None = None

    def install(self) -> None:
        """Install the handlers, in the main thread only; not for signals ignored (nohup) or handled outside Python."""
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        # The handlers of a scheduler that is never closed must not outlive it, nor those of a call that is cut short.
        self._at_end = weakref.finalize(self, _put_back, self._handlers.values())
        self._at_end.atexit = False
        for signum in (getattr(signal, name, None) for name in NAMES):
            before = None if signum is None else signal.getsignal(signum)
            if signum is None or before is None or before is signal.SIG_IGN:
                continue
            handler = self._handlers[signum] = _Handler(weakref.ref(self), signum, before)
            signal.signal(signum, handler)
        self._ttys = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def restore(self) -> None:
        """Put the earlier handlers back."""
        if self._handlers:
            handlers, self._handlers = self._handlers.values(), {}
            self._at_end.detach()
            _put_back(handlers)

    def leave(self) -> None:
        """Put the earlier handlers back as the run is left; a signal that still waits acts a moment later.

        It cannot act at once, as an exception in a generator that is being closed would be lost.
        """
        if self.received is None:
            self.restore()
        elif self._handlers:
            self._hurry(self.received)

    def stay(self) -> None:
        """Undo `leave`: a waiting signal is answered after all, and the reminder must not interrupt the checkpoint."""
        self._urgent_since = self._reminder = None

    def _hurry(self, signum: int) -> None:
        """Act on a signal as soon as no call of this package runs: send it again until then."""
        if self._urgent_since is None:
            self._urgent_since = self._clock()
        if self._reminder is None:
            # Not by `threading`: this may be a handler, which has interrupted the very code that holds its locks.
            self._reminder = reminder = object()
            _thread.start_new_thread(self._remind, (signum, reminder))

    def _remind(self, signum: int, reminder: object) -> None:
        wait, end = FIRST_REMINDER, time.monotonic() + HOLD_SECONDS + 1
        while time.monotonic() < end:
            time.sleep(wait)
            is_mine = self._reminder is reminder and signal.getsignal(signum) is self._handlers.get(signum)
            if not is_mine or self.received is None:
                return
            self._is_reminder = True
            os.kill(os.getpid(), signum)
            wait = min(2 * wait, MOST_BETWEEN)

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        """Note a signal, in a handler that has interrupted ``frame``.

        The first one waits for the end of the step. A second one acts at once, but in a call of this package only when
        that is left, or after `HOLD_SECONDS`; a third one does not wait. Further SIGHUP are ignored, as a closing
        terminal may send several.
        """
        now = self._clock()
        is_first = self.received is None
        if is_first:
            self.received, self._since = signum, now
            self._wake()
            self._say(f"r8: {signal.Signals(signum).name}: the run ends after this step; once more to end it at once\n")
            return
        is_reminder, self._is_reminder = self._is_reminder, False
        if not is_reminder and (now - self._since < SAME_SECONDS or signum == getattr(signal, "SIGHUP", None)):
            return
        since = self._urgent_since
        is_third = since is not None and not is_reminder and now - since >= SAME_SECONDS
        if is_third or (since is not None and now - since >= HOLD_SECONDS) or not is_inside(frame):
            self.act(signum)
        else:
            self._hurry(signum)

    def act(self, signum: int | None = None) -> None:
        """Do what the received signal, if any, would have done without these handlers.

        Raises:
            KeyboardInterrupt: Ctrl-C, if Python's own handler was set before.
            Preempted: SIGTERM or SIGHUP, if no handler was set before. A handler of the user is called instead, and if
                it returns, training continues.
        """
        signum = self.received if signum is None else signum
        # A reminder now would meet the earlier handlers: SIGTERM would end the process during its clean-up.
        self.stay()
        self.received = None
        if signum is None or signum not in self._handlers:
            return
        before = self._handlers[signum].earlier
        try:
            if before is signal.SIG_DFL:
                raise Preempted(signum)
            before(signum, None)
        except BaseException:
            self.restore()
            for callback in self.before_exit:
                try:
                    callback()
                except Exception:
                    traceback.print_exc()
            raise

    def _say(self, text: str) -> None:
        """Write to stderr, safely in a handler; if the terminal is gone, later writes go to the null device."""
        with contextlib.suppress(OSError):
            os.write(2, text.encode())
        for descriptor in self._ttys:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


class _Handler:
    """Passes a signal to its watch; without an active watch, it acts like the handler before it.

    Attributes:
        before: The handler before it.
    """

    def __init__(self, watch: weakref.ref[SignalWatch], signum: int, before: Any) -> None:
        self.watch, self.signum, self.before = watch, signum, before
        self._pid = os.getpid()
        self._steps: dict[_Handler, int] = {}
        while isinstance(before, _Handler):
            self._steps[before] = before.num_steps
            before = before.before

    @property
    def is_heard(self) -> bool:
        """Whether its watch exists and is active, in the process that trains: not in a forked child."""
        watch = self.watch()
        return watch is not None and watch._handlers.get(self.signum) is self and os.getpid() == self._pid

    @property
    def num_steps(self) -> int:
        """Steps of its run; -1 if that is gone."""
        watch = self.watch()
        return -1 if watch is None else watch.count_steps()

    @property
    def earlier(self) -> Any:
        """The handler before it, of a run that is still driven.

        A run that made no step since this one began was abandoned by an exception, or waits for this one in its own
        step. Neither could act on the signal, and the process would go on.
        """
        before = self.before
        while isinstance(before, _Handler) and not (
            before.is_heard and before.num_steps != self._steps.get(before, before.num_steps)
        ):
            before = before.before
        return before

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        watch = self.watch()
        is_its = watch is not None and (watch.scope is None or watch.received)
        if watch is not None and self.is_heard and (is_its or (watch.scope is not None and watch.scope(frame))):
            watch.note(signum, frame)
        elif self.before is signal.SIG_DFL:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        else:
            self.before(signum, frame)


def _put_back(handlers: Iterable[_Handler]) -> None:
    for handler in handlers:
        signum, before = handler.signum, handler.before
        while isinstance(before, _Handler) and not before.is_heard:
            before = before.before
        # A handler set since then stays; if it calls this one, the signal is passed to the one before.
        with contextlib.suppress(ValueError):
            if signal.getsignal(signum) is handler:
                signal.signal(signum, before)
