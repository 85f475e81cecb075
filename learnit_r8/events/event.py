"""The base of all events, what a person is told of them, and their listeners."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .text import clean, number

INFO, GOOD, WARN, ALERT = "info", "good", "warn", "alert"

_TROUBLE = re.compile(r"refused|failed|diverged|spike|drift|damaged|lost|abandoned|gave|stall", re.IGNORECASE)


class Words(NamedTuple):
    """What a person is told of an event, the same in every view.

    Attributes:
        level: "info", "good", "warn" or "alert".
        text: One sentence.
        mark: A letter for the axis of the charts: S refused, P probe, B restored, C saved, R resumed, Q in quarantine,
            D cool-down; or "".
    """

    level: str
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Event:
    """An event of a run.

    Attributes:
        step: Batches reported so far, refused ones included.
        seconds: Training time so far, pauses and downtime excluded.
    """

    step: int
    seconds: float

    def words(self) -> Words | None:
        """What a person is told; None where the event only carries numbers, as events without words of their own do.

        Of an event of a later version or of the user's own: its name as words, and its fields.
        """
        if type(self).__module__.startswith(f"{__package__}."):
            return None
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()
        values = []
        for field in dataclasses.fields(self):
            if field.name not in ("step", "seconds", "epoch"):
                value = getattr(self, field.name)
                text = number(value) if isinstance(value, float) else clean(value, 60)
                values.append(f"{field.name.replace('_', ' ')} {text}")
        return Words(WARN if _TROUBLE.search(name) else INFO, f"{name}: {', '.join(values)}" if values else name)


def describe(event: Event) -> Words | None:
    """The words of an event, safe to show."""
    said = event.words()
    return None if said is None else said._replace(text=clean(said.text))


Listener = Callable[[Event], None]
"""Hears every event, in order, on the training thread."""
