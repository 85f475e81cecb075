"""An event of a stream, and reading numbers out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..triggers import Elapsed


class Event(dict[str, Any]):
    """A dictionary that describes one epoch or step, and knows how far training had come.

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
