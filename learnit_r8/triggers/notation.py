"""Reading a trigger from an argument: steps, a time in words, or a trigger as it is."""

from __future__ import annotations

import numbers
from typing import Any

from .trigger import Condition
from .when import every, seconds_of


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
