"""The rates: which learning rate a step has, of the search, of the schedule, or as recovery holds it down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...schedules.schedule import Kept, Schedule, check_rate

if TYPE_CHECKING:
    from ...recovery.controller import RecoveryController
    from ..emitter import EventEmitter
    from ..pace import Pace
    from .search import LrSearch


class Rates:
    """The learning rate of each step.

    Args:
        make_schedule: Returns the schedule of a peak rate; None for the one that the user gave.
        pace: Knows the progress.
        search: Finds the peak rate before the run, if that was asked for.
        controller: May hold rates down.
        emitter: Tells listeners of another schedule.

    Attributes:
        schedule: The schedule now, a function from progress in [0, 1] to a rate.
        own: The user's own rate as far as it is told, NaN before; None where the rate is the schedule's.
        last: The progress that the schedule was asked for last, and its rate.
    """

    def __init__(
        self,
        make_schedule: Callable[[float | None], Schedule],
        *,
        pace: Pace,
        search: LrSearch,
        controller: RecoveryController,
        emitter: EventEmitter,
    ) -> None:
        self.schedule = make_schedule(None)
        self.own = math.nan if isinstance(self.schedule, Kept) else None
        self.last = math.nan, math.nan
        self._make_schedule = make_schedule
        self._pace, self._search, self._controller, self._emitter = pace, search, controller, emitter

    @property
    def now(self) -> float:
        """The rate to use now."""
        return self._search.lr or self.at(self._pace.progress_at(self._pace.step))

    def after(self, held_back: int) -> float | None:
        """The rate once this many more batches are reported; None while one is searched for."""
        return None if self._search.is_on else self.at(self._pace.progress_at(self._pace.step + held_back))

    def at(self, progress: float) -> float:
        """The rate at some progress: that of the schedule, unless recovery holds it down."""
        lr = self.scheduled(progress)
        return lr if self._controller.is_quiet else self._controller.lr(lr)

    def scheduled(self, progress: float) -> float:
        """The rate of the schedule at some progress."""
        # Needed after a report and at the next draw; with a budget in steps both are the same.
        last, lr = self.last
        if progress == last:
            return lr
        # CPython 3.11 calls a method in half the time that it takes to call an object.
        lr = self.schedule.__call__(progress)  # type: ignore[operator]
        # What `check_rate` checks first, without its call.
        if type(lr) is not float or not 0.0 <= lr < math.inf:
            lr = check_rate(lr, progress)
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
