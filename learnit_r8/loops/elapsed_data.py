"""Periods of steps, samples or seconds, and a data set that counts them, for your own loop."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .._validation import whole_number
from ..engine.feed.batch_size import read_size
from ..triggers import Elapsed, Trigger, as_trigger
from ..triggers.when import After, At, seconds


@dataclass(frozen=True, eq=False)
class Period(Trigger):
    """A number of steps, samples or seconds, whichever is reached first; as a trigger, whether it is reached.

    Args:
        steps: Steps, >= 0, or None.
        samples: Samples, >= 0, or None.
        time: Seconds, >= 0, or a timedelta, or None.

    Raises:
        ValueError: none is given, or one is out of its range.

    >>> Period(steps=10, time=60.0)(Elapsed(steps=9, time=61.0))
    True
    """

    steps: int | None = None
    samples: int | None = None
    time: float | timedelta | None = None

    def __post_init__(self) -> None:
        if self.steps is self.samples is self.time is None:
            raise ValueError(f"one of steps, samples and time must be given, got {self!r}.")
        for unit in ("steps", "samples"):
            value = getattr(self, unit)
            if value is not None:
                object.__setattr__(self, unit, whole_number(unit, value, least=0))
        if self.time is not None:
            object.__setattr__(self, "time", seconds("time", self.time, zero_is_fine=True))

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether one of them is over, counted from the start."""
        return self.share(elapsed) >= 1

    def share(self, elapsed: Elapsed, since: Elapsed = Elapsed()) -> float:
        """How much of it is over since some point: the largest share of the units, >= 0; from 1 on it is over."""
        used = ((getattr(elapsed, unit) - getattr(since, unit), limit) for unit, limit in self.limits())
        return max(done / limit if limit else math.inf for done, limit in used)

    def limits(self) -> list[tuple[str, float]]:
        """The units that are limited, and how far."""
        return [(unit, getattr(self, unit)) for unit in ("steps", "samples", "time") if getattr(self, unit) is not None]


def as_period(name: str, value: Any) -> Period:
    """The period that an argument such as ``total`` stands for.

    Args:
        name: The argument, for the message.
        value: A number of steps >= 0, a timedelta, a text such as "30s", a `Period`, or ``at(...)``.

    Raises:
        ValueError: none of these.
    """
    period = _period_of(name, value)
    if period is None:
        raise ValueError(f'{name} must be a number of steps >= 0, a time such as "30s" or a Period, got {value!r}.')
    return period


def _period_of(name: str, value: Any) -> Period | None:
    if isinstance(value, Period):
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0:
        return Period(steps=int(value))
    if isinstance(value, timedelta):
        return Period(time=value)
    if isinstance(value, At):
        limits: dict[str, Any] = {value.unit: min(value.points)}
        return Period(**limits)
    if isinstance(value, After):
        limits = {value.unit: value.point}
        return Period(**limits)
    if isinstance(value, str):
        trigger: Any = as_trigger(name, value)
        return Period(time=trigger.interval)
    return None


def as_stop(stop: Any) -> tuple[Callable[[Elapsed], Any] | None, Period | None]:
    """When to stop, as a condition and, if it is one, as a period; two times None for never.

    Raises:
        ValueError: it is neither a period nor a function of `Elapsed`.
    """
    if stop is None:
        return None, None
    period = _period_of("stop", stop)
    if period is not None:
        return period, period
    if not callable(stop):
        raise ValueError(
            f'stop must be a number of steps >= 0, a time such as "30s", a Period or a trigger, got {stop!r}.'
        )
    return stop, None


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of the first array in it, else of the first list; 1 where there is neither.

    >>> batch_size(({"x": [10, 11, 12]}, "label"))
    3
    """
    return read_size(batch) or 1


def opened(dataset: Any) -> Iterator[Any]:
    """An iterator over a data set, which may be a function that returns one.

    Raises:
        TypeError: it is neither.
    """
    source = dataset() if callable(dataset) and not hasattr(dataset, "__iter__") else dataset
    try:
        return iter(source)
    except TypeError:
        raise TypeError(f"dataset must be an iterable, or a function that returns one, got {dataset!r}.") from None


class StopRule:
    """Says when to stop, with a clock reading of its own only where the answer depends on time.

    Args:
        condition: As `as_stop` gives it.
        elapsed: Where the run begins.
    """

    def __init__(self, condition: Callable[[Elapsed], Any] | None, elapsed: Elapsed) -> None:
        self._origin = time.monotonic() - elapsed.time
        self._condition = condition
        self._last = elapsed[:3]
        limits = condition.limits() if isinstance(condition, Period) else []
        self._most_steps = limits[0][1] if [unit for unit, _ in limits] == ["steps"] else None

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._origin

    def is_over(self, elapsed: Elapsed) -> bool:
        """Whether to stop after these steps and samples."""
        if self._condition is None:
            return False
        if self._most_steps is not None:
            return bool(elapsed.steps >= self._most_steps)
        now = (elapsed.steps, elapsed.samples, self.seconds())
        question, self._last = Elapsed(*now, *self._last), now
        return bool(self._condition(question))


def elapse(dataset: Any, *, stop: Any = None, elapsed: Elapsed | None = None) -> Iterator[tuple[Elapsed, Any]]:
    """Go through a data set and count, for your own loop.

    Args:
        dataset: An iterable of batches, or a function that returns one.
        stop: As in `loop`; no batch is taken from the data set beyond it.
        elapsed: Where to go on from.

    Yields:
        Steps, samples and seconds once this batch is finished, for triggers and bars; and the batch.

    Raises:
        TypeError: the data set is not iterable.
        ValueError: ``stop`` is not a condition.

    >>> [(elapsed.steps, elapsed.samples) for elapsed, _ in elapse([[1, 2], [3, 4], [5]])]
    [(1, 2), (2, 4), (3, 5)]
    """
    batches = opened(dataset)
    condition, _ = as_stop(stop)
    return _elapsing(batches, condition, Elapsed() if elapsed is None else elapsed)


def _elapsing(
    batches: Iterator[Any], condition: Callable[[Elapsed], Any] | None, elapsed: Elapsed
) -> Iterator[tuple[Elapsed, Any]]:
    yield from counted(batches, StopRule(condition, elapsed), elapsed)


def counted(batches: Iterator[Any], watch: StopRule, elapsed: Elapsed) -> Iterator[tuple[Elapsed, Any]]:
    """The batches up to a stop, each with the steps, samples and seconds once it is finished."""
    if watch.is_over(elapsed):
        return
    for batch in batches:
        steps, samples, seconds = elapsed[:3]
        elapsed = Elapsed(steps + 1, samples + batch_size(batch), watch.seconds(), steps, samples, seconds)
        yield elapsed, batch
        if watch.is_over(elapsed):
            return
