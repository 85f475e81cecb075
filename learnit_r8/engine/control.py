"""Requests: what other threads and signal handlers ask of a run, answered by the training thread between two steps.

Requests only set plain attributes, and the training thread checks one of them per step. There is no lock, as a signal
handler may interrupt the very code that holds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import events
from ..events.bus import Announcer
from .pace import Pace
from .signals import Scope, SignalWatch

POLL_SECONDS = 0.02
"""Interval at which a paused run checks whether to continue."""


class Requests:
    """Accepts requests at any time and answers them between steps, where model and scheduler are consistent.

    Args:
        pace: Stops counting time while the run is paused, and is told when it is stopped.
        announcer: Receives events.
        save: Writes a checkpoint; must not raise because of the disk.
        handle_signals: Whether signals that end the process wait for the end of the step and a checkpoint.
        sleep: Waits for some seconds.

    Attributes:
        is_pending: Whether there is something to answer; an ordinary step checks only this.
        is_paused: Whether the training thread waits.
        signals: The signal handling; None if signals are not handled.
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
        # The first answer installs the signal handlers.
        self.is_pending = handle_signals
        self.is_paused = False
        self._stop_reason: str | None = None
        self._pause_reason: str | None = None
        self._wants_save = False

    def stop(self, reason: str = "") -> None:
        """Ask the run to save and end after this step: iterators end, and no more batches are drawn.

        Args:
            reason: Why, as shown to the user.
        """
        self._stop_reason = reason
        # Last, so that a thread that sees it also sees the request.
        self.is_pending = True

    def save(self) -> None:
        """Ask for a checkpoint after this step."""
        self._wants_save = True
        self.is_pending = True

    def pause(self, reason: str = "") -> None:
        """Ask the run to wait after this step, until `resume` or `stop`; the time does not count.

        Args:
            reason: Why, as shown to the user.
        """
        self._pause_reason = reason
        self.is_pending = True

    def resume(self) -> None:
        """Let a paused run continue."""
        self._pause_reason = None

    def _wake(self) -> None:
        self.is_pending = True

    def answer(self) -> None:
        """Carry out the requests. The training thread calls this between two steps.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was saved.
            Preempted: another signal ends the process; a checkpoint was saved.
        """
        # First, so that requests made from here on are pending again.
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
            # The run may continue if the exception is caught.
            self.is_pending = True
            self.signals.act()

    def leave(self) -> None:
        """Restore the earlier signal handlers as the run is left; `answer` installs its own again if it continues."""
        if self.signals is not None:
            self.signals.leave()
            self.signals.scope = None
            self.is_pending = True

    def stay_within(self, scope: Scope | None) -> None:
        """Handle signals only while a part of the program runs, until the run is left; see `SignalWatch.scope`.

        Args:
            scope: The part; None for the whole program.
        """
        if self.signals is not None:
            self.signals.scope = scope

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
        """Wait until the run may continue; save meanwhile on request."""
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
