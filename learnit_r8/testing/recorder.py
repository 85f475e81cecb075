"""A recorder of events."""

from __future__ import annotations

from typing import TypeVar

from ..events import Event

_E = TypeVar("_E", bound=Event)


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
