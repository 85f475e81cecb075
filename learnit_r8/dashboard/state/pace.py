"""The speed of a run and the time it will take, from the steps of this session alone."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import NamedTuple

from ... import events

WINDOW = 64
"""Number of records of steps in the median, the newest."""

BREAKS = 8
"""Number of breaks between epochs (validation) in the mean, the newest."""


class TimeLeft(NamedTuple):
    """An estimate of the time that is left.

    Attributes:
        seconds: NaN if unknown.
        spread: Uncertainty in both directions, seconds; NaN if unknown.
    """

    seconds: float
    spread: float


class Pacing:
    """Folds the times of steps; breaks between epochs are counted apart."""

    def __init__(self) -> None:
        # Some steps in a row, and the seconds they took.
        self._window: deque[tuple[float, events.StepsDone]] = deque(maxlen=WINDOW)
        self._breaks: deque[float] = deque(maxlen=BREAKS)
        self._since = math.nan
        self._after_epoch = False
        self._before = math.nan
        self._median: float | None = None

    def started(self, event: events.RunStarted) -> None:
        """Start a session. A resumed one has only the speed of the earlier sessions yet, maybe of another machine."""
        self._window.clear()
        self._median = None
        self._breaks.clear()
        self._since, self._after_epoch = event.seconds, False
        self._before = event.seconds / event.step if event.step else math.nan

    def epoch_ended(self, event: events.EpochDone) -> None:
        """The time until the next step is a break."""
        self._since, self._after_epoch = event.seconds, True

    def refused(self, event: events.BatchRefused) -> None:
        """Leave a refused step out."""
        self._since = event.seconds

    def stepped(self, event: events.StepsDone) -> None:
        """Measure some steps."""
        took, self._since = event.seconds - self._since, event.seconds
        if self._after_epoch:
            self._after_epoch = False
            usual = self.seconds_per_step
            if math.isfinite(usual) and math.isfinite(took):
                self._breaks.append(max(0.0, took - event.num_steps * usual))
                return
        if took >= 0:
            self._median = None
            self._window.append((took, event))

    @property
    def seconds_per_step(self) -> float:
        """Median over the newest steps of this session, else the mean of earlier sessions, else NaN."""
        if not self._window:
            return self._before
        if self._median is None:
            self._median = statistics.median(self._step_times())
        return self._median

    def _step_times(self) -> list[float]:
        return [took / steps.num_steps for took, steps in self._window]

    @property
    def is_measured(self) -> bool:
        """Whether steps of this session were measured."""
        return bool(self._window)

    def _rate(self, field: str) -> float:
        """Return how much of a field of the steps there was per second."""
        seconds = sum(took for took, _ in self._window)
        return sum(getattr(steps, field) for _, steps in self._window) / seconds if seconds > 0 else math.nan

    @property
    def samples_per_second(self) -> float:
        """Mean over the newest steps; NaN before them."""
        return self._rate("samples")

    @property
    def own_share(self) -> float:
        """Share of the time spent inside the scheduler and its listeners; NaN before it is known."""
        return self._rate("own_seconds")

    @property
    def data_share(self) -> float:
        """Share of the time spent waiting for data, 0 where nobody measures it; NaN before it is known."""
        return self._rate("data_seconds")

    def left(self, steps: int, epoch_ends: int = 0) -> TimeLeft:
        """Time for some more steps, with a break at each end of an epoch among them."""
        each = self.seconds_per_step
        pause = sum(self._breaks) / len(self._breaks) if self._breaks else 0.0
        return TimeLeft(steps * each + epoch_ends * pause, steps * self._step_spread())

    def _step_spread(self) -> float:
        """Standard deviation of the median between quarters of the window."""
        times = self._step_times()
        size = len(times) // 4
        if size < 2:
            return math.nan
        quarters = [statistics.median(times[start : start + size]) for start in range(0, 4 * size, size)]
        # statistics.stdev computes exactly, which costs a tenth of a frame.
        middle = sum(quarters) / 4
        return math.sqrt(sum((quarter - middle) ** 2 for quarter in quarters) / 3)
