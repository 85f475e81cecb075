"""The triggers: frozen questions about `Elapsed`, combined with ``&``, ``|`` and ``~``; how an argument says them."""

from __future__ import annotations

import abc
import math
import numbers
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple, NoReturn

from .._validation import is_number, whole_number


class Elapsed(NamedTuple):
    """What is finished now, and what was finished at the question before.

    It carries both, so that triggers need no memory: two runs, or two askers, cannot disturb each other.

    Attributes:
        steps: Steps finished.
        samples: Samples trained on.
        time: Seconds since the start.
        last_steps: Steps at the question before; 0 at the first one.
        last_samples: Samples at the question before.
        last_time: Seconds at the question before.
    """

    steps: int = 0
    samples: int = 0
    time: float = 0.0
    last_steps: int = 0
    last_samples: int = 0
    last_time: float = 0.0

    def then(self, steps: int, samples: int, time: float) -> Elapsed:
        """The next question's: what is finished by then, and what is now."""
        return Elapsed(steps, samples, time, *self[:3])


class ElapsedCounter:
    """Counts for a loop of your own: one `count` a step, one clock reading a `count`.

    Time is that of ``time.monotonic``, and starts when the counter is made.

    >>> counter = ElapsedCounter()
    >>> [counter.count(samples=32).samples for _ in range(3)]
    [32, 64, 96]
    """

    def __init__(self) -> None:
        self._done = Elapsed()
        self._origin = time.monotonic()

    def count(self, steps: int = 1, samples: int = 0) -> Elapsed:
        """Note that this many more are finished.

        Args:
            steps: Steps since the call before, >= 0.
            samples: Samples since the call before, >= 0.

        Returns:
            Where the run is now, for triggers.

        Raises:
            ValueError: one of them is not whole or below 0.
        """
        steps, samples = whole_number("steps", steps, least=0), whole_number("samples", samples, least=0)
        done = self._done
        self._done = done.then(done.steps + steps, done.samples + samples, time.monotonic() - self._origin)
        return self._done

    def __getstate__(self) -> dict[str, Any]:
        # The clock of another process begins elsewhere.
        return {**self.state_dict(), "time": time.monotonic() - self._origin}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on counting."""
        return {"steps": self._done.steps, "samples": self._done.samples, "time": self._done.time}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the time in between does not count."""
        self._done = Elapsed(state["steps"], state["samples"], state["time"])
        self._origin = time.monotonic() - state["time"]


Condition = Callable[[Elapsed], Any]
"""Says of a point of the run whether to act: a trigger, or any function of `Elapsed` whose result has a truth."""


class Trigger(abc.ABC):
    """A question about how far a run is, without memory and without a clock.

    ``a & b``, ``a | b`` and ``~a`` are triggers too, with plain functions as well; both sides are always asked. Two
    triggers are never equal, so that each may be a key of its own in one dictionary of tasks.
    """

    @abc.abstractmethod
    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether to act at this point."""

    def __and__(self, other: Condition) -> Trigger:
        return Both(self, other) if callable(other) else NotImplemented

    __rand__ = __and__

    def __or__(self, other: Condition) -> Trigger:
        return Either(self, other) if callable(other) else NotImplemented

    __ror__ = __or__

    def __invert__(self) -> Trigger:
        return Not(self)

    def __bool__(self) -> bool:
        # ``every(10) and f`` would silently be ``f``.
        raise TypeError(f"a trigger must be combined with & | ~ and called with an Elapsed, got the truth of {self!r}.")


@dataclass(frozen=True, eq=False)
class Both(Trigger):
    """``left & right``.

    Attributes:
        left: A condition.
        right: A condition, asked whatever the left one says.
    """

    left: Condition
    right: Condition

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether both say yes."""
        left, right = self.left(elapsed), self.right(elapsed)
        return bool(left) and bool(right)


@dataclass(frozen=True, eq=False)
class Either(Trigger):
    """``left | right``.

    Attributes:
        left: A condition.
        right: A condition, asked whatever the left one says.
    """

    left: Condition
    right: Condition

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether one says yes."""
        left, right = self.left(elapsed), self.right(elapsed)
        return bool(left) or bool(right)


@dataclass(frozen=True, eq=False)
class Not(Trigger):
    """``~inner``.

    Attributes:
        inner: A condition.
    """

    inner: Condition

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether it says no."""
        return not self.inner(elapsed)


@dataclass(frozen=True, eq=False)
class Constant(Trigger):
    """The same answer at every question.

    Attributes:
        answer: The answer.
    """

    answer: bool

    def __call__(self, elapsed: Elapsed) -> bool:
        """The answer."""
        return self.answer


always = Constant(True)
"""Fires at every question."""

never = Constant(False)
"""Never fires."""


def crosses(last: float, now: float, interval: float, offset: float) -> bool:
    """Whether one of the lines ``offset``, ``offset + interval``, ... lies in ``(last, now]``.

    The lines stand still, so nothing drifts; several of them crossed at once are one yes.

    Args:
        last: Where the asker was at the question before, <= now.
        now: Where it is.
        interval: Distance between two lines, > 0, in the same unit.
        offset: The first line.

    >>> crosses(59.0, 185.0, 60.0, 0.0), crosses(185.0, 190.0, 60.0, 0.0)
    (True, False)
    """
    return now >= offset and (now - offset) // interval > (last - offset) // interval


def early(offset: float, interval: float) -> float:
    """The first line of a grid of seconds, a millionth of the interval early.

    Clocks and their differences are rounded: without this, a question put exactly on a line would be a coin toss, and
    a no there would merge the line with the next one.
    """
    return offset - 1e-6 * interval


Unit = Literal["steps", "samples", "time"]

_BEFORE = {"steps": "last_steps", "samples": "last_samples", "time": "last_time"}


@dataclass(frozen=True, eq=False)
class Every(Trigger):
    """A grid over one of the counts; see `every`.

    Attributes:
        unit: Which count of `Elapsed`.
        interval: Distance between two lines, > 0.
        offset: The first line; for seconds, see `early`.
    """

    unit: Unit
    interval: float
    offset: float = 0

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether a line was crossed since the question before."""
        unit = self.unit
        return crosses(getattr(elapsed, _BEFORE[unit]), getattr(elapsed, unit), self.interval, self.offset)


@dataclass(frozen=True, eq=False)
class At(Trigger):
    """Single points of one of the counts; see `at`.

    Attributes:
        unit: Which count of `Elapsed`.
        points: Where to fire.
    """

    unit: Unit
    points: tuple[float, ...]

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether a point was passed since the question before."""
        last, now = getattr(elapsed, _BEFORE[self.unit]), getattr(elapsed, self.unit)
        return any(last < point <= now for point in self.points)


@dataclass(frozen=True, eq=False)
class After(Trigger):
    """True from a point of one of the counts on; see `after`.

    Attributes:
        unit: Which count of `Elapsed`.
        point: From here on.
    """

    unit: Unit
    point: float

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether the point is reached."""
        reached: bool = getattr(elapsed, self.unit) >= self.point
        return reached

    def every(
        self, steps: int | None = None, *, samples: int | None = None, time: float | timedelta | str | None = None
    ) -> Trigger:
        """Fire at this point and then regularly.

        Args:
            steps: Steps between two times, >= 1.
            samples: Or samples, >= 1.
            time: Or seconds, > 0, a timedelta, or a text such as "10min".

        Raises:
            ValueError: not exactly one of the three, or out of its range.

        >>> trigger = after(5).every(20)
        >>> [step for step in range(1, 50) if trigger(Elapsed(step, last_steps=step - 1))]
        [5, 25, 45]
        """
        unit, interval = _one_of(least=1, steps=steps, samples=samples, time=time)
        if unit == self.unit:
            return Every(unit, interval, early(self.point, interval) if unit == "time" else self.point)
        return self & Every(unit, interval)


def every(
    steps: int | str | None = None,
    *,
    samples: int | None = None,
    time: float | timedelta | str | None = None,
    steps_offset: int = 0,
    **others: NoReturn,
) -> Trigger:
    """Fire at regular distances, on a grid that starts with the run: no drift, whenever it is asked.

    A question asked late is answered yes once, however many lines of the grid have gone by.

    Args:
        steps: Steps between two times, >= 1; a text such as "10min" is a time.
        samples: Or samples, >= 1.
        time: Or seconds, > 0, a timedelta, or a text such as "30s", "10min" or "2h".
        **others: Refused.
        steps_offset: First step to fire at, >= 0; by default ``steps``.

    Raises:
        ValueError: not exactly one of the three, or one out of its range, or an offset without steps.

    >>> trigger = every(steps=20, steps_offset=5)
    >>> [step for step in range(1, 50) if trigger(Elapsed(step, last_steps=step - 1))]
    [5, 25, 45]
    """
    unit, interval = _one_of(least=1, steps=steps, samples=samples, time=time, **others)
    offset = whole_number("steps_offset", steps_offset, least=0)
    if offset and unit != "steps":
        raise ValueError(f"steps_offset must come with steps, got {offset!r} with {unit}; see after().")
    return Every(unit, interval, early(0.0, interval) if unit == "time" else offset)


def at(*steps: int, samples: int | None = None, time: float | timedelta | str | None = None) -> Trigger:
    """Fire once at each of these points.

    Args:
        *steps: Steps, >= 1 each.
        samples: Or a number of samples, >= 1.
        time: Or seconds, > 0, a timedelta, or a text such as "10min".

    Raises:
        ValueError: not exactly one kind of point, or one out of its range.

    >>> [step for step in range(1, 9) if at(2, 5)(Elapsed(step, last_steps=step - 1))]
    [2, 5]
    """
    if steps and samples is None and time is None:
        return At("steps", tuple(whole_number("steps", step, least=1) for step in steps))
    unit, point = _one_of(least=1, steps=steps or None, samples=samples, time=time)
    return At(unit, (point,))


def after(
    steps: int | None = None, *, samples: int | None = None, time: float | timedelta | str | None = None
) -> After:
    """Be true from a point on; ``after(n).every(m)`` fires at n, n + m, ...

    Args:
        steps: Finished steps, >= 0.
        samples: Or samples, >= 0.
        time: Or seconds, >= 0, a timedelta, or a text such as "10min".

    Raises:
        ValueError: not exactly one of the three, or out of its range.

    >>> [step for step in range(1, 6) if after(4)(Elapsed(step))]
    [4, 5]
    """
    return After(*_one_of(least=0, steps=steps, samples=samples, time=time))


def _one_of(least: int, **given: Any) -> tuple[Unit, float]:
    """Check the one unit that was given, and return it with its value."""
    chosen: dict[Any, Any] = {unit: value for unit, value in given.items() if value is not None}
    if len(chosen) != 1 or not chosen.keys() <= _BEFORE.keys():
        raise ValueError(
            f"exactly one of steps, samples and time must be given, got {chosen or 'none'}; a time is in seconds, or a "
            'text: time=600, time="10min". Combine with & |.'
        )
    [(unit, value)] = chosen.items()
    if unit == "steps" and seconds_of(value) is not None:
        unit = "time"
    if unit == "time":
        return unit, seconds("time", value, zero_is_fine=least == 0)
    return unit, whole_number(unit, value, least=least)


def seconds_of(text: Any) -> float | None:
    """The seconds that a text such as "30s", "5min" or "2h" stands for; None if it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)\s*", text) if isinstance(text, str) else None
    return float(match[1]) * {"s": 1.0, "min": 60.0, "h": 3600.0}[match[2]] if match else None


def seconds(name: str, value: Any, *, zero_is_fine: bool) -> float:
    """``value``, a number or a timedelta, in seconds; ValueError, naming the argument, unless finite and in range."""
    number: Any = value.total_seconds() if isinstance(value, timedelta) else value
    number = seconds_of(value) if isinstance(value, str) else number
    if not is_number(number) or not (0 <= number < math.inf):
        number = -1
    if number < 0 or (number == 0 and not zero_is_fine):
        hint = '; as a text write "30s", "10min" or "2h"' if isinstance(value, str) else ""
        raise ValueError(f"{name} must be finite seconds {'>=' if zero_is_fine else '>'} 0, got {value!r}{hint}.")
    return float(number)


def as_trigger(name: str, value: Any) -> Condition:
    """What an argument such as ``backup_every`` stands for.

    Args:
        name: The argument, for the message.
        value: A number of steps, a text such as "30s", "5min", "2h", or a trigger or another function of `Elapsed`.

    Raises:
        ValueError: none of these.

    >>> as_trigger("backup_every", 50)
    Every(unit='steps', interval=50, offset=0)
    """
    if callable(value):
        condition: Condition = value
        return condition
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1:
        return every(int(value))
    time = seconds_of(value)
    if time:
        return every(time=time)
    raise ValueError(
        f'{name} must be a number of steps >= 1, a time such as "30s", "5min" or "2h", or a trigger, got {value!r}.'
    )


NEVER = (math.inf, math.inf)
NOBODY_KNOWS = (0.0, 0.0)
EARLY = 1e-9
"""Lines of a grid of seconds are rounded; a question that is put this part of the interval too early does no harm."""


def quiet_until(condition: Condition, asked: Elapsed) -> tuple[float, float]:
    """Steps and seconds before both of which a condition says no, if it was asked at this point.

    A condition asked at every step says the same as one that is asked when either of them is reached, and then again.

    Args:
        condition: A trigger; of any other function of `Elapsed` nobody can tell.
        asked: Where it was asked last.

    >>> quiet_until(every(10) | every(time=30), Elapsed(steps=20, time=7.0))[0]
    30
    """
    if isinstance(condition, (Both, Either)):
        left, right = quiet_until(condition.left, asked), quiet_until(condition.right, asked)
        return min(left[0], right[0]), min(left[1], right[1])
    if isinstance(condition, Constant):
        return NOBODY_KNOWS if condition.answer else NEVER
    if not isinstance(condition, (Every, At, After)) or condition.unit == "samples":
        return NOBODY_KNOWS
    is_time, now = condition.unit == "time", getattr(asked, condition.unit)
    # The point at which the answer may change.
    if isinstance(condition, Every):
        offset, interval = condition.offset, condition.interval
        line = offset if now < offset else offset + ((now - offset) // interval + 1) * interval
        point = line - EARLY * interval if is_time else line
    elif isinstance(condition, At):
        point = min((point for point in condition.points if point > now), default=math.inf)
    elif now < condition.point:
        point = condition.point
    else:
        return NOBODY_KNOWS
    return (math.inf, point) if is_time else (point, math.inf)
