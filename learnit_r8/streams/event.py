"""An event of a stream, and reading numbers out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..triggers import Elapsed


class Event(dict[str, Any]):
    """A dictionary of what one epoch or step was like, which also knows how far training was.

    Attributes:
        elapsed: Steps (those that ``event["step"]`` counts), samples and seconds so far, for triggers; None in an
            event that no stream of this package made.

    >>> event = Event(step=1, train_loss=0.5)
    >>> event.merged({"lr": 0.1})
    {'step': 1, 'train_loss': 0.5, 'lr': 0.1}
    """

    elapsed: Elapsed | None = None

    def merged(self, more: Mapping[str, Any]) -> Event:
        """A copy with these entries too."""
        event = Event(self)
        event.update(more)
        event.elapsed = self.elapsed
        return event


def merged(event: Mapping[str, Any], more: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy of an event with more entries; an `Event` stays one."""
    return event.merged(more) if isinstance(event, Event) else {**event, **more}


def number(event: Mapping[str, Any], key: str) -> float:
    """``event[key]`` as a float, from a 0-dim array or tensor too.

    Raises:
        KeyError: the event has no such key.
        TypeError: the value is not one real number.
    """
    try:
        value = event[key]
    except KeyError:
        raise KeyError(f"key must be one of the event's keys {sorted(event)}, got {key!r}.") from None
    if type(value) is float:
        return value
    scalar = as_scalar(value)
    if not isinstance(scalar, (int, float)):
        raise TypeError(f"event[{key!r}] must be a real number or a 0-dim array or tensor, got {value!r}.")
    return float(scalar)


def as_scalar(value: Any) -> Any:
    """A 0-dim array or tensor as a Python scalar; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


class Record:
    """The best value so far of a number that is to fall or to rise.

    Args:
        mode: "min" or "max".
        min_delta: Least difference that counts as better, >= 0.

    Raises:
        ValueError: another mode, or ``min_delta`` not finite or below 0.
    """

    def __init__(self, mode: str, min_delta: float) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f'mode must be "min" or "max", got {mode!r}.')
        if not (isinstance(min_delta, (int, float)) and 0 <= min_delta < math.inf):
            raise ValueError(f"min_delta must be finite and >= 0, got {min_delta!r}.")
        self._sign = 1.0 if mode == "min" else -1.0
        self._min_delta = min_delta
        self.value: float | None = None

    def improves(self, value: float) -> bool:
        """Whether this value is a new best one, which it then is; one that is not finite never is."""
        if not math.isfinite(value):
            return False
        if self.value is not None and not self._sign * value < self._sign * self.value - self._min_delta:
            return False
        self.value = value
        return True
