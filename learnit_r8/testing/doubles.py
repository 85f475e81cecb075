"""What stands in for the world in tests of a training: a clock that stands still, and a listener that remembers."""

from __future__ import annotations

import math
from typing import TypeVar

from .._validation import is_number
from ..events import Event

_E = TypeVar("_E", bound=Event)


class FakeClock:
    """A clock that stands still until `advance`; for the argument ``clock`` of `R8Scheduler`.

    >>> clock = FakeClock()
    >>> clock.advance(1.5)
    >>> clock()
    1.5
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: the seconds are negative; a monotonic clock never goes back.
        """
        if not (is_number(seconds) and 0 <= seconds < math.inf):
            raise ValueError(f"seconds must be a finite number >= 0, got {seconds!r}.")
        self.now += seconds


class RecordedEvents(list[Event]):
    """The events of a run in order; a listener."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, *kinds: type[_E]) -> list[_E]:
        """The events of some kinds."""
        return [event for event in self if isinstance(event, kinds)]


def record_events() -> RecordedEvents:
    """A listener that is the list of the events it got, for the argument ``listeners``.

    >>> from learnit_r8 import R8Scheduler, events
    >>> heard = record_events()
    >>> r8 = R8Scheduler(8, batch_size=4, num_epochs=1, listeners=[heard])
    >>> outcome = r8.report(r8.draw(), 1.0)
    >>> [event.loss for event in heard.of(events.StepDone)]
    [1.0]
    """
    return RecordedEvents()
