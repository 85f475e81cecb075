"""Requests: what other threads and signal handlers ask of a run, answered by the training thread between two steps.

Requests only set plain attributes, and the training thread checks one of them per step. There is no lock, as a signal
handler may interrupt the very code that holds it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import events
from ..events.bus import Announcer
from ..recovery.agreement import Agreement
from ..schedules.span import UNITS, Span, typed_span
from .signals import Scope, SignalWatch

if TYPE_CHECKING:
    from .pace import Pace

POLL_SECONDS = 0.02
"""Interval at which a paused run checks whether to continue."""


SAVE, STOP, PAUSE, COOL_DOWN, FINISH = 1, 2, 4, 8, 16
"""The requests, as bits of a number."""


class Requests:
    """Accepts requests at any time and answers them between steps, where model and scheduler are consistent.

    On several ranks a request is first a wish of one of them; `agree` turns the wishes of all into requests on each,
    which they answer after the same step. It refers to nothing of the run but its position, so that a thread which may
    ask does not keep the run alive.

    Args:
        pace: Stops counting time while the run is paused, and learns when it is stopped.
        announcer: Receives events.
        handle_signals: Whether signals that end the process wait for the end of the step and a checkpoint.
        sleep: Waits for some seconds.
        agreement: Knows the ranks that answer together.

    Attributes:
        is_pending: Whether there is something to answer; an ordinary step checks only this.
        is_paused: Whether the training thread waits.
        is_agreed: Whether all ranks have agreed on a request that is not answered yet.
        wished: The wishes of this rank that were not answered yet, as bits.
        signals: The signal handling; None if signals are not handled.
    """

    def __init__(
        self, pace: Pace, announcer: Announcer, *, handle_signals: bool = False,
        sleep: Callable[[float], None] = time.sleep, agreement: Agreement | None = None,
    ) -> None:  # fmt: skip
        self._pace, self._announcer, self._sleep = pace, announcer, sleep
        self._agreement = agreement or Agreement()
        self.signals: SignalWatch | None = None
        if handle_signals:
            self.signals = SignalWatch(self._wake, count_steps=lambda: pace.step)
        # The first answer installs the signal handlers.
        self.is_pending = handle_signals
        self.is_paused = False
        # What is to be answered but for cool-downs, and why.
        self._asked: dict[int, str] = {}
        self._cool_downs: deque[tuple[Span, str]] = deque(maxlen=20)
        self._refused: deque[str] = deque(maxlen=20)
        self.is_agreed = False
        self.wished = 0
        self._why = ""
        self._span = Span("steps", 0.0)

    def stop(self, reason: str = "") -> None:
        """Ask the run to save and end after this step: iterators end, and no more batches are drawn.

        Args:
            reason: Why, as shown to the user.
        """
        self._ask(STOP, reason)

    def finish(self, reason: str = "") -> None:
        """End the run like `stop`, but as a success: the program itself has decided that it has done enough.

        Args:
            reason: Why, as shown to the user.
        """
        self._ask(FINISH, reason)

    def save(self) -> None:
        """Ask for a checkpoint after this step."""
        self._ask(SAVE)

    def pause(self, reason: str = "") -> None:
        """Ask the run to wait after this step, until `resume` or `stop`; the time does not count.

        Args:
            reason: Why, as shown to the user.
        """
        self._ask(PAUSE, reason)

    def resume(self) -> None:
        """Let a paused run continue; on several ranks one that was paused on this rank."""
        self.wished &= ~PAUSE
        if self._agreement.ranks is None:
            self._asked.pop(PAUSE, None)

    def cool_down(self, span: Span | int | str | None = None, source: str = "") -> None:
        """Ask for a cool-down from the next step on; a later request counts if it ends sooner.

        Args:
            span: Its length: a number of steps, a text such as "500 steps", "2 epochs", "20min", the local time of its
                end, "20:30", or a `Span`. None or "" for the share of the whole run that the rule gives.
            source: Who asks, as shown to the user.

        Raises:
            ValueError: it is no length.
        """
        self._ask(COOL_DOWN, source, typed_span(span) or Span("share", self._pace.rule.share))

    def _ask(self, wish: int, why: str | None = None, span: Span | None = None) -> None:
        if self._agreement.ranks is None:
            self._take(wish, why or "", span)
            return
        if why is not None:
            self._why = why
        if span is not None:
            self._span = span
        self.wished |= wish

    def _take(self, wish: int, why: str, span: Span | None) -> None:
        """Have a request answered after this step."""
        if span is not None:
            self._cool_downs.append((span, why))
        elif wish != FINISH:
            self._asked[wish] = why
        else:
            self._asked.setdefault(wish, why)
        # Last, so that a thread that sees it also sees the request.
        self.is_pending = True

    def share(self) -> None:
        """Make wishes of what was asked for before this rank met the others, so that all ranks answer it together."""
        asked, cool_downs = {**self._asked}, [*self._cool_downs]
        self._asked.clear()
        self._cool_downs.clear()
        for wish, why in asked.items():
            self._ask(wish, None if wish == SAVE else why)
        for span, source in cool_downs:
            self._ask(COOL_DOWN, source, span)

    @property
    def span(self) -> tuple[float, float]:
        """The length of the cool-down that this rank wishes, as numbers: the place of its unit, and the amount."""
        return float(UNITS.index(self._span.unit)), self._span.amount

    def agree(self, wishes: list[int], spans: Sequence[Sequence[float]]) -> None:
        """Turn the wishes of all ranks into requests; all ranks call it with the same.

        Args:
            wishes: The wishes of each rank, as bits.
            spans: The `span` of each; of several cool-downs that of the first rank counts.
        """
        assert self._agreement.ranks is not None
        self.wished &= ~(SAVE | STOP | COOL_DOWN | FINISH) | ~wishes[self._agreement.ranks.rank]
        anyone = 0
        for wish in wishes:
            anyone |= wish
        self.is_agreed |= bool(anyone)
        if anyone & SAVE:
            self._take(SAVE, "", None)
        if anyone & COOL_DOWN:
            unit, amount = next(span for wish, span in zip(wishes, spans, strict=True) if wish & COOL_DOWN)
            self._take(COOL_DOWN, self._reason(wishes, COOL_DOWN), Span(UNITS[int(unit)], amount))
        if anyone & (STOP | FINISH):
            self.wished &= ~PAUSE
            wish = STOP if anyone & STOP else FINISH
            self._take(wish, self._reason(wishes, wish), None)
        elif anyone & PAUSE:
            self._take(PAUSE, self._reason(wishes, PAUSE), None)
        else:
            self._asked.pop(PAUSE, None)

    def _reason(self, wishes: list[int], bit: int) -> str:
        assert self._agreement.ranks is not None
        ranks = [rank for rank, wish in enumerate(wishes) if wish & bit]
        own = self._agreement.ranks.rank in ranks and self._why
        return own or f"asked for on rank {', '.join(map(str, ranks))}"

    def refuse(self, text: str) -> None:
        """Have the training thread tell the user that a request was left out, and why."""
        self._refused.append(text)
        self.is_pending = True

    def _wake(self) -> None:
        """Have a signal on one rank end the run on all, after the same step."""
        if self._agreement.ranks is None:
            self.is_pending = True
        else:
            self.stop("a signal")

    def answer(
        self, save: Callable[[], None], *, cool_down: Callable[[Span, str], None] = lambda span, source: None
    ) -> float:
        """Carry out the requests. The training thread calls this between two steps, on all ranks at the same place.

        Args:
            save: Writes a checkpoint; must not raise because of the disk.
            cool_down: ``(span, source)``, begins a cool-down, or tells why not.

        Returns:
            Seconds that the run was paused, which are not the scheduler's.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was saved.
            Preempted: another signal ends the process; a checkpoint was saved.
        """
        # First, so that requests made from here on are pending again.
        self.is_pending = self.is_agreed = False
        try:
            return self._answer(save, cool_down)
        except BaseException:
            self.is_pending = True
            raise

    def _answer(self, save: Callable[[], None], cool_down: Callable[[Span, str], None]) -> float:
        if self.signals is not None:
            self.signals.stay()
        if self.signals is not None and not self._pace.is_over:
            self.signals.install()
        if FINISH in self._asked and STOP not in self._asked and not self._pace.is_over:
            # Before the checkpoint, so that a resumed run knows that it has finished.
            self._pace.ended_early = self._asked[FINISH]
        self._save_if_asked(save)
        waited = self._wait(save) if PAUSE in self._asked else 0.0
        while self._refused:
            self._announcer.tell(events.Notice, text=self._refused.popleft(), is_warning=True)
        while self._cool_downs:
            # Taken away last: an interrupted one is begun again.
            cool_down(*self._cool_downs[0])
            self._cool_downs.popleft()
        reason, is_early = self._asked.get(STOP, self._asked.get(FINISH)), STOP not in self._asked
        if reason is not None and not self._pace.is_over:
            self._pace.is_stopped = True
            self._announcer.tell(events.RunStopped, reason=reason, is_early=is_early)
        if reason is not None:
            # Not where none was there: another thread may ask for one at this moment.
            for wish in (STOP, FINISH):
                self._asked.pop(wish, None)
        if self.signals is not None and self.signals.received is not None:
            # The run may continue if the exception is caught.
            self.is_pending = True
            self.signals.act()
        return waited

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
        is_signalled = self.signals is not None and self.signals.received is not None
        return STOP in self._asked or FINISH in self._asked or is_signalled

    def _save_if_asked(self, save: Callable[[], None]) -> None:
        if SAVE in self._asked or self._must_end:
            # Taken away first, as it may be asked for again meanwhile.
            self._asked.pop(SAVE, None)
            try:
                save()
            except BaseException:
                self._asked[SAVE] = ""
                raise

    def _wait(self, save: Callable[[], None]) -> float:
        """Wait until the run may continue, and return how long; save meanwhile on request."""
        self._announcer.tell(events.RunPaused, reason=self._asked.get(PAUSE, ""))
        self.is_paused, began = True, self._pace.clock()
        try:
            with self._pace.paused():
                while PAUSE in self._asked and not self._must_end:
                    if self._agreement.ranks is None:
                        self._sleep(POLL_SECONDS)
                    else:
                        self._agreement.meet(self.wished, self.span, self.agree)
                    self._save_if_asked(save)
        finally:
            self._asked.pop(PAUSE, None)
            self.is_paused = False
            self._announcer.tell(events.RunResumed)
        return self._pace.clock() - began
