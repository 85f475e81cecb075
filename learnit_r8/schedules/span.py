"""The length of a cool-down, as a program, a person or a file gives it."""

from __future__ import annotations

import datetime
import math
import re
import time
from typing import Any, NamedTuple

from .._validation import is_number, whole_number

UNITS = ("steps", "epochs", "seconds", "until", "share")
"""Units of a `Span`."""

MOST_AMOUNT = 1e12
"""Most steps, epochs or seconds: more than any run has, and numbers that everything can compute with."""

_LATEST = datetime.datetime(9999, 12, 1, tzinfo=datetime.timezone.utc).timestamp()
"""Latest time that a calendar can show."""

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_WORDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|steps?|epochs?)?\s*")


class Span(NamedTuple):
    """The length of a cool-down.

    Attributes:
        unit: "steps", "epochs" or "seconds"; "until", a wall time; or "share", of the whole run.
        amount: So many of them; seconds since 1970 for "until".
    """

    unit: str
    amount: float

    def __str__(self) -> str:
        if self.unit == "until":
            return f"until {datetime.datetime.fromtimestamp(self.amount):%Y-%m-%d %H:%M:%S}"
        return f"{self.amount:.0%} of the run" if self.unit == "share" else f"{self.amount:g} {self.unit}"


def span_of(
    *, steps: Any = None, epochs: Any = None, seconds: Any = None, until: Any = None, wall: float | None = None
) -> Span | None:
    """The span that one of these arguments stands for; None for none of them.

    Args:
        steps: Whole, >= 1.
        epochs: > 0; fractions are fine.
        seconds: > 0.
        until: Local time as a text, "20:30" today or "2026-11-22 06:00", or a `datetime.datetime`.
        wall: Seconds since 1970; by default now.

    Raises:
        ValueError: several are given, one is outside its range, or the time is past.
    """
    given = {"steps": steps, "epochs": epochs, "seconds": seconds, "until": until}
    chosen = {unit: value for unit, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise ValueError(f"at most one of steps, epochs, seconds and until must be given, got {chosen}.")
    for unit, value in chosen.items():
        if unit == "until":
            return Span(unit, _wall_time(value, time.time() if wall is None else wall))
        if unit == "steps":
            if isinstance(value, str) and _WORDS.fullmatch(value):
                span = read_span("steps", value)
                meant = f"{span.unit}={span.amount:g}"
                raise ValueError(f"steps must be a whole number >= 1, got {value!r}, which is a str. Give {meant}.")
            value = whole_number("steps", value, least=1)
        return checked_span(unit, value)
    return None


def read_span(name: str, value: Any) -> Span:
    """The span that an argument such as ``cool_down`` holds.

    Args:
        name: The argument, for the message.
        value: A number of steps; a text such as "500 steps", "2 epochs", "30s", "20min", "1.5h"; or a span.

    Raises:
        ValueError: none of these.

    >>> read_span("cool_down", "20min")
    Span(unit='seconds', amount=1200.0)
    """
    if isinstance(value, Span):
        return value if value.unit == "share" else checked_span(*value)
    is_whole = is_number(value) and math.isfinite(value) and value == int(value)
    match = _WORDS.fullmatch(str(value)) if isinstance(value, str) or is_whole else None
    if match and 0 < float(match[1]) <= MOST_AMOUNT:
        number, unit = float(match[1]), match[2] or "steps"
        if unit in _SECONDS:
            return checked_span("seconds", number * _SECONDS[unit])
        if unit.startswith("epoch"):
            return Span("epochs", number)
        if number == int(number):
            return Span("steps", number)
    raise ValueError(
        f'{name} must be a number of steps >= 1, or a text such as "500 steps", "2 epochs", "30s", "20min" or "2h", '
        f"got {value!r}."
    )


def checked_span(unit: Any, amount: Any) -> Span:
    """The span of a unit and an amount that somebody else has chosen.

    Raises:
        ValueError: the unit is not steps, epochs, seconds or until; or there cannot be so many.
    """
    most = _LATEST if unit == "until" else MOST_AMOUNT
    if unit not in UNITS[:4]:
        raise ValueError(f"a length must be in steps, epochs, seconds or until a time, got {str(unit)[:40]!r}.")
    if not (is_number(amount) and 0 < amount < math.inf):
        raise ValueError(f"{unit} must be a number > 0 and finite, got {repr(amount)[:40]}.")
    if amount > most or (unit == "steps" and amount != int(amount)):
        kind = "a whole number" if unit == "steps" else "a number"
        raise ValueError(f"{unit} must be {kind} of at most {most:.6g}, got {repr(amount)[:40]}.")
    return Span(unit, float(amount))


def typed_span(value: Any) -> Span | None:
    """The span that a person or a program asks for: what `read_span` reads, or "20:30"; None for nothing.

    Raises:
        ValueError: it is none.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and ":" in value:
        return span_of(until=value.strip().removeprefix("until").strip())
    return read_span("the length", value)


def _wall_time(value: Any, now: float) -> float:
    """Seconds since 1970 of a local time that is still to come."""
    if not isinstance(value, (str, datetime.datetime)):
        raise ValueError(f'until must be a local time such as "20:30" or "2026-11-22 06:00", got {value!r}.')
    try:
        if isinstance(value, str) and re.fullmatch(r"\s*\d{1,2}:\d{2}(:\d{2})?\s*", value):
            hours, minutes, *rest = map(int, value.split(":"))
            day = datetime.datetime.fromtimestamp(now)
            meant = day.replace(hour=hours, minute=minutes, second=rest[0] if rest else 0, microsecond=0)
        else:
            meant = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(value.strip())
        seconds = meant.timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(
            f'until must be a local time such as "20:30" or "2026-11-22 06:00", got {value!r} ({error}).'
        ) from None
    if seconds <= now:
        is_at = datetime.datetime.fromtimestamp(now)
        raise ValueError(
            f"until must be in the future, got {value!r} at {is_at:%Y-%m-%d %H:%M:%S}; give the date too if it is not "
            "today."
        )
    return seconds
