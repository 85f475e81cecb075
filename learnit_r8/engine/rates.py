"""The rates: which learning rate a step has, of the search, of the schedule or its cool-down, or as recovery says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import events
from ..schedules.schedule import Kept, Schedule, WarmupStableDecay, check_rate
from ..schedules.span import Span

if TYPE_CHECKING:
    from ..events.bus import Announcer
    from ..recovery.persistence import Persistence
    from ..recovery.recovery import RecoveryController
    from .emitter import EventEmitter
    from .pace import Pace
    from .rate_search import LrSearch


class Rates:
    """The learning rate of each step.

    Args:
        make_schedule: Returns the schedule of a peak rate; None for the one that the user gave.
        pace: Knows the progress.
        search: Finds the peak rate before the run, if that was asked for.
        controller: May hold rates down.
        emitter: Tells listeners of another schedule.
        announcer: Tells them of a cool-down.
        persistence: Looks again at what is due, as a cool-down ends the run sooner.

    Attributes:
        schedule: The schedule now, a function from progress in [0, 1] to a rate.
        own: The user's own rate as far as it is told, NaN before; None where the rate is the schedule's.
        last: The progress that the schedule was asked for last, and its rate.
    """

    def __init__(
        self, make_schedule: Callable[[float | None], Schedule], *, pace: Pace, search: LrSearch,
        controller: RecoveryController, emitter: EventEmitter, announcer: Announcer, persistence: Persistence,
    ) -> None:  # fmt: skip
        self.schedule = make_schedule(None)
        self.own = math.nan if isinstance(self.schedule, Kept) else None
        self.last = math.nan, math.nan
        self._make_schedule = make_schedule
        self._pace, self._search, self._controller, self._emitter = pace, search, controller, emitter
        self._announcer, self._persistence = announcer, persistence

    @property
    def now(self) -> float:
        """The rate to use now."""
        return self._search.lr or self.at(self._pace.step)

    def after(self, held_back: int) -> float | None:
        """The rate once this many more batches are reported; None while one is searched for."""
        return None if self._search.is_on else self.at(self._pace.step + held_back)

    def at(self, step: int) -> float:
        """The rate once this many steps are done: that of the schedule, unless recovery holds it down."""
        return self._controller.lr(self.scheduled_at(step))

    def scheduled_at(self, step: int) -> float:
        """The rate of the schedule once this many steps are done."""
        # One that keeps the user's rate does so whatever the progress, which need not be known.
        return 1.0 if type(self.schedule) is Kept else self.scheduled(self._pace.progress_at(step))

    def scheduled(self, progress: float) -> float:
        """The rate of the schedule at some progress."""
        # Needed after a report and at the next draw; with a budget in steps both are the same.
        last, lr = self.last
        if progress != last:
            lr = check_rate(self.schedule(progress), progress)
            self.last = progress, lr
        return lr

    def shown(self, lr: float) -> float:
        """A rate of the run as the user knows it: if the rate is the user's own, that of the run is a factor on it."""
        return lr if self.own is None else lr * self.own

    def use_found(self) -> None:
        """Follow the schedule whose peak the search has found, once it has."""
        if self._search.found_lr is not None:
            self.follow_schedule()

    def follow_schedule(self) -> None:
        """Follow the schedule of the peak rate, found or given, or the cool-down once there is one."""
        before = self.schedule
        self.schedule = self._pace.budget.cool_down or self._make_schedule(self._search.found_lr)
        self.last = math.nan, math.nan
        # Shares of the user's own rate are no plan of it.
        if self.schedule != before and self.own is None:
            self._emitter.lr_planned(self.schedule)

    # The cool-down that ends a run when it is asked for: the rate falls from there on.

    def check_cool_down(self, span: Span | None) -> Span:
        """The span of a cool-down that is about to be asked for; None stands for the rule's share of the whole run.

        Raises:
            ValueError: it would be longer than what is left.
            RuntimeError: the run is over.
        """
        pace = self._pace
        if pace.is_over:
            raise RuntimeError(f"cool_down() was called at step {pace.step} of a run that is over.")
        span = span or Span("share", pace.rule.share)
        pace.with_cool_down(span, self.scheduled_at(pace.step))
        return span

    def begin_branch(self, span: Span) -> None:
        """Let a run that was just resumed from a checkpoint of its stable part end with a cool-down.

        Raises:
            ValueError: the checkpoint is of the decay already, or the cool-down is longer than what is left.
        """
        pace = self._pace
        progress = pace.progress_at(pace.step)
        is_decaying = isinstance(self.schedule, WarmupStableDecay) and progress > 1 - self.schedule.decay
        if pace.budget.cool_down is not None or is_decaying:
            raise ValueError(
                f"cool_down needs a checkpoint of the stable part, got one of step {pace.step}, where the rate already "
                "falls."
            )
        pace.end_at(pace.with_cool_down(span, self.scheduled(progress)))
        self.follow_schedule()
        self._persistence.wake()

    def begin_cool_down(self, span: Span, source: str) -> None:
        """Let the rate fall from here on, and the run end with it; a notice says so where that is not possible.

        Args:
            span: Length of the cool-down.
            source: Who asked for it; "" for the program itself.
        """
        pace, before = self._pace, self._pace.budget
        if pace.is_over:
            return
        try:
            budget = pace.with_cool_down(span, self.scheduled_at(pace.step))
        except ValueError as error:
            asked = f"the cool-down asked for {source} is ignored: {error}"
            self._announcer.tell(events.Notice, text=asked, is_warning=True)
            return
        is_same = before.cool_down is not None and (before.steps, before.seconds) == (budget.steps, budget.seconds)
        if not is_same:
            pace.end_at(budget)
        # If this is interrupted, it is done again: the end stays, as it is the same.
        self.follow_schedule()
        self._persistence.wake()
        ending = pace.budget
        assert ending.cool_down is not None
        if not is_same:
            self._announcer.tell(
                events.CoolDownBegan,
                total_steps=ending.steps,
                train_duration_seconds=ending.seconds,
                until=ending.cool_down.until,
                lr=ending.cool_down.lr,
                reason=source,
            )
