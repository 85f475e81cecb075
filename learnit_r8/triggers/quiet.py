"""How long a trigger surely says no: a step must not pay for questions whose answer is known."""

from __future__ import annotations

import math

from .trigger import Both, Condition, Constant, Either, Elapsed
from .when import After, At, Every

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

    >>> from .when import every
    >>> quiet_until(every(10) | every(time=30), Elapsed(steps=20, time=7.0))[0]
    30
    """
    if isinstance(condition, (Both, Either)):
        left, right = quiet_until(condition.left, asked), quiet_until(condition.right, asked)
        return min(left[0], right[0]), min(left[1], right[1])
    if isinstance(condition, Constant):
        return NOBODY_KNOWS if condition.answer else NEVER
    next_point = _next_point(condition, asked)
    if next_point is None:
        return NOBODY_KNOWS
    unit, point = next_point
    return (point, math.inf) if unit == "steps" else (math.inf, point)


def _next_point(condition: Condition, asked: Elapsed) -> tuple[str, float] | None:
    """Return the unit, and the point at which the answer may change; None if that is unknown."""
    if not isinstance(condition, (Every, At, After)) or condition.unit == "samples":
        return None
    unit: str = condition.unit
    now: float = getattr(asked, unit)
    if isinstance(condition, Every):
        offset, interval = condition.offset, condition.interval
        line = offset if now < offset else offset + ((now - offset) // interval + 1) * interval
        return unit, line if unit == "steps" else line - EARLY * interval
    if isinstance(condition, At):
        return unit, min((point for point in condition.points if point > now), default=math.inf)
    return (unit, condition.point) if now < condition.point else None
