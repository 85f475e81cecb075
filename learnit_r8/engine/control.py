"""Requests: what other threads and signal handlers ask of a run, answered by the training thread between two steps.

Requests only set plain attributes, and the training thread checks one of them per step. There is no lock, as a signal
handler may interrupt the very code that holds it.
"""

from __future__ import annotations

import signal
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .. import events
from ..events.bus import Announcer
from ..schedules.span import Span, typed_span
from .signals import Scope, SignalWatch

if TYPE_CHECKING:
    from .pace import Pace

POLL_SECONDS = 0.02
"""Interval at which a paused run checks whether to continue."""


class HasRequests(Protocol):
    """Something that requests are made of: a run."""

    requests: Requests


class Requests:
    """Accepts requests at any time and answers them between steps, where model and scheduler are consistent.

    Args:
        pace: Stops counting time while the run is paused, and is told when it is stopped.
        announcer: Receives events.
        save: Writes a checkpoint; must not raise because of the disk.
        cool_down: ``(span, source)``, begins a cool-down, or tells why not.
        handle_signals: Whether signals that end the process wait for the end of the step and a checkpoint.
        sleep: Waits for some seconds.
        waited: Told after a pause how many seconds it took, as that time is not the scheduler's.

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
        cool_down: Callable[[Span, str], None] = lambda span, source: None,
        handle_signals: bool = False,
        cool_down_on: tuple[int, Span] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._pace, self._announcer, self._save, self._sleep = pace, announcer, save, sleep
        self._waited = waited
        self._begin_cool_down = cool_down
        self._cool_down_on = cool_down_on
        signum = None if cool_down_on is None else cool_down_on[0]
        self.signals: SignalWatch | None = None
        if handle_signals:
            self.signals = SignalWatch(
                self._wake, ask=self._cool_down_by_signal, asking=signum, count_steps=lambda: pace.step
            )
        # The first answer installs the signal handlers.
        self.is_pending = handle_signals
        self.is_paused = False
        self._stop_reason: str | None = None
        self._pause_reason: str | None = None
        self._wants_save = False
        self._cool_downs: deque[tuple[Span, str]] = deque(maxlen=20)
        self._refused: deque[str] = deque(maxlen=20)

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

    def cool_down(self, span: Span | None, source: str = "") -> None:
        """Ask for a cool-down from the next step on; a later one counts if it ends sooner.

        Args:
            span: Its length; None for the share of the whole run that the rule gives.
            source: Who asks, as shown to the user.
        """
        self._cool_downs.append((self.default_span if span is None else span, source))
        self.is_pending = True

    def cool_down_for(self, text: str, source: str = "") -> None:
        """Ask for a cool-down of the length that a person has typed; see `typed_span`.

        Raises:
            ValueError: the text is no length.
        """
        self.cool_down(typed_span(text), source)

    @property
    def default_span(self) -> Span:
        """The length of a cool-down for which none is given."""
        return Span("share", self._pace.rule.share)

    def refuse(self, text: str) -> None:
        """Have the training thread tell the user that a request was left out, and why."""
        self._refused.append(text)
        self.is_pending = True

    def _cool_down_by_signal(self) -> None:
        if self._cool_down_on is not None:
            signum, span = self._cool_down_on
            self.cool_down(span, f"by {signal.Signals(signum).name}")

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
        while self._refused:
            self._announcer.tell(events.Notice, text=self._refused.popleft(), is_warning=True)
        while self._cool_downs:
            # Taken away last: an interrupted one is begun again.
            self._begin_cool_down(*self._cool_downs[0])
            self._cool_downs.popleft()
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
        self.is_paused, began = True, self._pace.clock()
        try:
            with self._pace.paused():
                while self._pause_reason is not None and not self._must_end:
                    self._sleep(POLL_SECONDS)
                    self._save_if_asked()
        finally:
            self._pause_reason = None
            self.is_paused = False
            self._waited(self._pace.clock() - began)
            self._announcer.tell(events.RunResumed)


class RequestDoor:
    """Passes the requests of a screen or a journal to those of a run, which `membership.share` may replace.

    Args:
        run: The run; only referred to weakly.
    """

    def __init__(self, run: HasRequests) -> None:
        self._run = weakref.ref(run)

    def _pass_on(self, name: str, *arguments: object) -> None:
        # Looked up once: the run may be collected at any time, and its requests be replaced.
        run = self._run()
        if run is not None:
            getattr(run.requests, name)(*arguments)

    @property
    def is_paused(self) -> bool:
        """Whether the training thread waits."""
        run = self._run()
        return run is not None and run.requests.is_paused

    def stop(self, reason: str = "") -> None:
        """See `Requests.stop`."""
        self._pass_on("stop", reason)

    def save(self) -> None:
        """See `Requests.save`."""
        self._pass_on("save")

    def pause(self, reason: str = "") -> None:
        """See `Requests.pause`."""
        self._pass_on("pause", reason)

    def resume(self) -> None:
        """See `Requests.resume`."""
        self._pass_on("resume")

    def cool_down(self, span: Span | None, source: str = "") -> None:
        """See `Requests.cool_down`."""
        self._pass_on("cool_down", span, source)

    def cool_down_for(self, text: str, source: str = "") -> None:
        """See `Requests.cool_down_for`."""
        self._pass_on("cool_down_for", text, source)

    def refuse(self, text: str) -> None:
        """See `Requests.refuse`."""
        self._pass_on("refuse", text)
