"""Period: a length of a run in steps, samples or seconds; where to stop, and how long to be patient."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .._validation import whole_number
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
