"""Requests: what other threads and signal handlers ask of a run, answered by the training thread between two steps.

They only set plain attributes, and the training thread looks at one of them a step: no lock that a signal handler
could find held by the very code it interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import events
from ..events.bus import Announcer
from .pace import Pace
from .signals import SignalWatch

POLL_SECONDS = 0.02
"""How often a paused run looks whether it may go on."""


class Requests:
    """Asked from anywhere, answered where model and scheduler fit together.

    Args:
        pace: Stops counting time while the run is paused, and knows that it was stopped.
        announcer: Who is told.
        save: Writes a checkpoint of now; must not raise because of the disk.
        handle_signals: Whether signals that end the process wait for the end of the step and a checkpoint.
        sleep: Waits for some seconds.

    Attributes:
        is_pending: Whether there is something to answer; all that is looked at in an ordinary step.
        is_paused: Whether the training thread waits.
        signals: Those that wait; None if they are not handled.
    """

    def __init__(
        self,
        pace: Pace,
        announcer: Announcer,
        save: Callable[[], None],
        *,
        handle_signals: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._pace, self._announcer, self._save, self._sleep = pace, announcer, save, sleep
        self.signals = SignalWatch(self._wake) if handle_signals else None
        # The first answer takes over the signals.
        self.is_pending = handle_signals
        self.is_paused = False
        self._stop_reason: str | None = None
        self._pause_reason: str | None = None
        self._wants_save = False

    def stop(self, reason: str = "") -> None:
        """Ask the run to save and end after this step: iterators end, and no batch is drawn any more.

        Args:
            reason: Why, for people.
        """
        self._stop_reason = reason
        # Last: who sees it must find the request.
        self.is_pending = True

    def save(self) -> None:
        """Ask for a checkpoint after this step."""
        self._wants_save = True
        self.is_pending = True

    def pause(self, reason: str = "") -> None:
        """Ask the run to wait after this step, until `resume` or `stop`; the time does not count.

        Args:
            reason: Why, for people.
        """
        self._pause_reason = reason
        self.is_pending = True

    def resume(self) -> None:
        """Let a paused run go on."""
        self._pause_reason = None

    def _wake(self) -> None:
        self.is_pending = True

    def answer(self) -> None:
        """Do what was asked for. The training thread calls it between two steps.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was saved.
            Preempted: a signal is to end the process, likewise.
        """
        # First: what is asked for from here on is pending again.
        self.is_pending = False
        try:
            self._answer()
        except BaseException:
            self.is_pending = True
            raise

    def _answer(self) -> None:
        if self.signals is not None:
            self.signals.stay()
        if self.signals is not None and not self._pace.is_over:
            self.signals.install()
        self._save_if_asked()
        if self._pause_reason is not None:
            self._wait()
        reason = self._stop_reason
        if reason is not None and not self._pace.is_over:
            self._pace.is_stopped = True
            self._announcer.tell(events.RunStopped, reason=reason)
        if reason is not None:
            self._stop_reason = None
        if self.signals is not None and self.signals.received is not None:
            # Whoever catches the exception may go on with the run.
            self.is_pending = True
            self.signals.act()

    def leave(self) -> None:
        """Give back the signals as the run is left; `answer` takes them again if it goes on."""
        if self.signals is not None:
            self.signals.leave()
            self.is_pending = True

    @property
    def _must_end(self) -> bool:
        return self._stop_reason is not None or (self.signals is not None and self.signals.received is not None)

    def _save_if_asked(self) -> None:
        if self._wants_save or self._must_end:
            self._wants_save = False
            try:
                self._save()
            except BaseException:
                self._wants_save = True
                raise

    def _wait(self) -> None:
        """Wait until the run may go on; save meanwhile if that is asked for."""
        self._announcer.tell(events.RunPaused, reason=self._pause_reason)
        self.is_paused = True
        try:
            with self._pace.paused():
                while self._pause_reason is not None and not self._must_end:
                    self._sleep(POLL_SECONDS)
                    self._save_if_asked()
        finally:
            self._pause_reason = None
            self.is_paused = False
            self._announcer.tell(events.RunResumed)
