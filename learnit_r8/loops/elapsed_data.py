"""Periods of steps, samples or seconds, and a data set that counts them, for your own loop."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .._validation import whole_number
from ..engine.feed.batch_size import read_size
from ..triggers import Condition, Elapsed, Trigger
from ..triggers.trigger import After, At, seconds, seconds_of

_END: Any = object()


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

    def share(self, elapsed: Elapsed) -> float:
        """How much of it is over: the largest share of the units, >= 0; from 1 on it is over."""
        return max(getattr(elapsed, unit) / limit if limit else math.inf for unit, limit in self.limits())

    def limits(self) -> list[tuple[str, float]]:
        """The units that are limited, and how far."""
        return [(unit, getattr(self, unit)) for unit in ("steps", "samples", "time") if getattr(self, unit) is not None]


def as_stop(name: str, value: Any) -> Condition:
    """What an argument such as ``stop`` stands for: a `Period` if it says how long, else a function of `Elapsed`.

    Args:
        name: The argument, for the message.
        value: A number of steps >= 0, a timedelta, a text such as "30s", a `Period`, a trigger or another function.

    Raises:
        ValueError: none of these.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0:
        return Period(steps=int(value))
    if isinstance(value, timedelta) or seconds_of(value) is not None:
        return Period(time=seconds(name, value, zero_is_fine=True))
    if isinstance(value, (At, After)):
        limits: dict[str, Any] = {value.unit: min(value.points) if isinstance(value, At) else value.point}
        return Period(**limits)
    if not callable(value):
        raise ValueError(
            f'{name} must be a number of steps >= 0, a time such as "30s", a Period or a trigger, got {value!r}.'
        )
    condition: Condition = value
    return condition


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
    start = Elapsed() if elapsed is None else elapsed
    condition = None if stop is None else as_stop("stop", stop)
    return counted(opened(dataset), condition, start, time.monotonic() - start.time)


def counted(
    batches: Iterator[Any], stop: Condition | None, elapsed: Elapsed, origin: float
) -> Iterator[tuple[Elapsed, Any]]:
    """The batches up to a stop, each with the steps, samples and seconds once it is finished.

    Args:
        batches: No more of them are taken than are needed.
        stop: Asked before each; None for never.
        elapsed: Where to go on from.
        origin: What the clock said at the start of the run.
    """
    asked = elapsed
    while True:
        if stop is not None:
            asked = asked.then(elapsed.steps, elapsed.samples, time.monotonic() - origin)
            if stop(asked):
                return
        batch = next(batches, _END)
        if batch is _END:
            return
        elapsed = elapsed.then(elapsed.steps + 1, elapsed.samples + batch_size(batch), time.monotonic() - origin)
        yield elapsed, batch
