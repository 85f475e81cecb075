"""Turns: calls from several threads change a run one after another, and a call that was cut short is not forgotten.

The lock is held for the microseconds of an ordinary step or of storing something, and never while a function of the
user runs. What takes longer has a turn: other calls wait until it is over, but those that only look at the run do not.
While anything changes, ``busy`` says what. Only the call that is done clears it, so whatever cuts a call short (Ctrl-C
without handlers, an exception thrown into the thread, MemoryError) leaves it set, and the next call raises
`RunInterrupted`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..events.bus import Announcer
from ..recovery.policy import RestoreError, TrainingDiverged
from ..schedules.range_test import SearchFailed
from ..sources.ticket import Ticket
from ..table.table import SampleTable

COMPLETE = (TrainingDiverged, RestoreError, SearchFailed)
"""Exceptions that end a call after its last change."""

PATIENCE = 0.05
"""Seconds that whoever only looks at a run waits for a turn to end: longer than it takes to plan a chunk."""


class RunInterrupted(RuntimeError):
    """A call was cut short, so the state of the run is not whole; the message says how to go on."""


@dataclass(eq=False)
class Turn:
    """What one call does while all others wait.

    Attributes:
        call: Its name.
        step: Steps reported before it.
        is_changing: Whether the run is half changed; set by the call before its first change.
        was_cut: Whether an earlier call was cut short, which this one repairs.
        thread: The thread that makes it.
    """

    call: str
    step: int
    is_changing: bool = False
    was_cut: bool = False
    thread: int = field(default_factory=threading.get_ident)


class Turns:
    """Lets one call at a time change a run.

    Args:
        table: Its lock is the one that is held; it says whether it is whole itself.
        announcer: Hands on the events of a turn when it is over.

    Attributes:
        lock: The lock of the table.
        busy: The `Turn` of a call; or, while an ordinary step holds the lock, the ticket that it reports, or the number
            of the step that it draws. None otherwise.
    """

    def __init__(self, table: SampleTable, announcer: Announcer) -> None:
        self.lock = table.lock
        self._table = table
        self.busy: Any = None
        self._announcer = announcer
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def take(self, call: str, step: int, *, mends: bool = False, is_changing: bool = False) -> Iterator[Turn]:
        """A ``with`` block for a call that no other call may come between.

        Args:
            call: Its name.
            step: Steps reported so far, for messages.
            mends: Whether it repairs a run in which a call was cut short.
            is_changing: Whether its changes begin at once.

        Raises:
            RunInterrupted: an earlier call was cut short.
            RuntimeError: a function of the user that has a turn calls back.
        """
        self._refuse_nested(call, step)
        try:
            with self._turn:
                turn = Turn(call, step)
                with self.lock:
                    turn.was_cut = mends and _is_cut(self.busy)
                    if turn.was_cut:
                        # Until its changes begin: whatever raises before leaves the run as it is, cut.
                        turn.is_changing = True
                    else:
                        self._check_whole()
                        turn.is_changing = is_changing
                    self.busy = turn
                self._announcer.is_held = True
                try:
                    yield turn
                    turn.is_changing = False
                except COMPLETE:
                    turn.is_changing = turn.was_cut
                    raise
                finally:
                    self._announcer.is_held = False
                    if not self._table.storage.is_whole:
                        turn.is_changing = True
                    if not turn.is_changing:
                        self.busy = None
        finally:
            self._announcer.deliver()

    def wait(self, call: str, step: int) -> None:
        """Wait until another call is over.

        Raises:
            RunInterrupted: it was cut short.
            RuntimeError: a function of the user that has a turn calls back.
        """
        self._refuse_nested(call, step)
        with self._turn, self.lock:
            self._check_whole()

    def mark_cut(self, call: str, step: int) -> None:
        """Note that a call has left the run half changed."""
        with self._turn, self.lock:
            self.busy = Turn(call, step, is_changing=True)

    @property
    def is_mine(self) -> bool:
        """Whether this thread has the turn."""
        busy = self.busy
        return isinstance(busy, Turn) and busy.thread == threading.get_ident() and self._turn.locked()

    @property
    def is_cut(self) -> bool:
        """Whether a call was cut short."""
        with self.lock:
            return _is_cut(self.busy) and not self._turn.locked()

    def is_free(self) -> bool:
        """Whether nobody has the turn, or will give it back at once; false while a function of the user has it."""
        is_free = self._turn.acquire(timeout=PATIENCE)
        if is_free:
            self._turn.release()
        return is_free

    def _refuse_nested(self, call: str, step: int) -> None:
        if self.is_mine:
            raise RuntimeError(
                f"{call}() was called at step {step} by a function that {self.busy.call}() calls; a load_callback or "
                "policy must not do that. Call it between two steps."
            )

    def _check_whole(self) -> None:
        """Raise RunInterrupted if a call was cut short; while nobody has the turn and the lock is held."""
        busy = self.busy
        if _is_cut(busy):
            of_ticket = f"report() of step {busy.step}" if isinstance(busy, Ticket) else f"draw() of step {busy}"
            what = f"{busy.call}() at step {busy.step}" if isinstance(busy, Turn) else of_ticket
            raise RunInterrupted(
                f"{what} was cut short by an exception, so the state of this run is not whole. Go on "
                "with load_checkpoint(), or with restore_backup(), which takes model and scheduler back to the newest "
                "backup in RAM; if there is neither, build another R8Scheduler around the model as it is."
            )
        self.busy = None


def _is_cut(busy: Any) -> bool:
    return busy.is_changing if isinstance(busy, Turn) else busy is not None
