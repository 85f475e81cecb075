"""How fast a run goes and how long it will take, from this session's steps alone."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import NamedTuple

from .. import events

WINDOW = 64
"""Newest records of steps that count."""

BREAKS = 8
"""Newest breaks between epochs (validation) that count."""


class Left(NamedTuple):
    """How long it will take.

    Attributes:
        seconds: NaN if unknown.
        spread: Either way; NaN if unknown.
    """

    seconds: float
    spread: float


class _Stretch(NamedTuple):
    """Some steps in a row.

    Attributes:
        seconds: Of all of them.
        steps, samples: How many.
        own, data: Seconds inside the scheduler, and waiting for data.
    """

    seconds: float
    steps: int
    samples: int
    own: float
    data: float


class Pacing:
    """Folds the times of steps; what lies between epochs is counted apart."""

    def __init__(self) -> None:
        self._window: deque[_Stretch] = deque(maxlen=WINDOW)
        self._breaks: deque[float] = deque(maxlen=BREAKS)
        self._since = math.nan
        self._after_epoch = False
        self._before = math.nan
        self._median: float | None = None

    def started(self, event: events.RunStarted) -> None:
        """A session begins, maybe a resumed one: its speed says nothing of this machine but is all there is yet."""
        self._window.clear()
        self._median = None
        self._breaks.clear()
        self._since, self._after_epoch = event.seconds, False
        self._before = event.seconds / event.step if event.step else math.nan

    def epoch_ended(self, event: events.EpochDone) -> None:
        """What comes next is a break."""
        self._since, self._after_epoch = event.seconds, True

    def refused(self, event: events.BatchRefused) -> None:
        """A refused step is no measure."""
        self._since = event.seconds

    def stepped(self, event: events.StepsDone) -> None:
        """Some steps were done."""
        took, self._since = event.seconds - self._since, event.seconds
        if self._after_epoch:
            self._after_epoch = False
            usual = self.seconds_per_step
            if math.isfinite(usual) and math.isfinite(took):
                self._breaks.append(max(0.0, took - event.num_steps * usual))
                return
        if took >= 0:
            self._median = None
            self._window.append(_Stretch(took, event.num_steps, event.samples, event.own_seconds, event.data_seconds))

    @property
    def seconds_per_step(self) -> float:
        """Median over the newest steps of this session; before them that of the sessions before; else NaN."""
        if not self._window:
            return self._before
        if self._median is None:
            self._median = statistics.median([stretch.seconds / stretch.steps for stretch in self._window])
        return self._median

    @property
    def is_measured(self) -> bool:
        """Whether this session's steps say it."""
        return bool(self._window)

    def _rate(self, total: float) -> float:
        seconds = sum(stretch.seconds for stretch in self._window)
        return total / seconds if seconds > 0 else math.nan

    @property
    def samples_per_second(self) -> float:
        """Over the newest steps; NaN before them."""
        return self._rate(sum(stretch.samples for stretch in self._window))

    @property
    def own_share(self) -> float:
        """Share of the time spent inside the scheduler and its listeners; NaN before it is known."""
        return self._rate(sum(stretch.own for stretch in self._window))

    @property
    def data_share(self) -> float:
        """Share of the time spent waiting for data, 0 where nobody measures it; NaN before it is known."""
        return self._rate(sum(stretch.data for stretch in self._window))

    def left(self, steps: int, epoch_ends: int = 0) -> Left:
        """How long so many more steps take, with the breaks between epochs.

        Args:
            steps: Steps left.
            epoch_ends: Ends of epochs among them that a break follows.
        """
        each = self.seconds_per_step
        pause = sum(self._breaks) / len(self._breaks) if self._breaks else 0.0
        return Left(steps * each + epoch_ends * pause, steps * self._step_spread())

    def _step_spread(self) -> float:
        """How much the median moves between quarters of the window."""
        times = [stretch.seconds / stretch.steps for stretch in self._window]
        size = len(times) // 4
        if size < 2:
            return math.nan
        quarters = [statistics.median(times[start : start + size]) for start in range(0, 4 * size, size)]
        # The exact arithmetic of statistics.stdev costs a tenth of a frame.
        middle = sum(quarters) / 4
        return math.sqrt(sum((quarter - middle) ** 2 for quarter in quarters) / 3)
