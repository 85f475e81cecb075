"""The announcer: hands events to listeners, and warns the user once of each topic."""

from __future__ import annotations

import importlib
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from .event import Event, Listener


class Announcer:
    """Hands events to listeners; one that raises is dropped with a warning, because a viewer must not end a run.

    Args:
        listeners: Called with every event, in this order.
        where: Returns the current step and training seconds; an attribute, too.

    Raises:
        TypeError: a listener is not callable.

    Attributes:
        is_heard: Whether there is a listener; without one events need not be made.
        wants_surveys: Whether a listener wants `SamplesSurveyed`: its attribute of this name is true.
        seconds: Training seconds of the last event.
    """

    def __init__(self, listeners: Iterable[Listener], where: Callable[[], tuple[int, float]]) -> None:
        # Now, and not in the step that tells the first event: it takes as long as a thousand steps.
        importlib.import_module(".kinds", __package__)
        self.where = where
        self._said: set[str] = set()
        self._listeners: list[Listener] = []
        self.is_heard = False
        self.wants_surveys = False
        self.seconds = 0.0
        if not isinstance(listeners, Iterable):
            raise TypeError(f"listeners must be a list of callables, got {listeners!r}.")
        for listener in listeners:
            self.add(listener)

    def add(self, listener: Listener) -> None:
        """Add a listener.

        Raises:
            TypeError: it is not callable.
        """
        if not callable(listener):
            raise TypeError(f"listeners must be callables that take an event, got {listener!r}.")
        self._listeners.append(listener)
        self.is_heard = True
        self.wants_surveys |= bool(getattr(listener, "wants_surveys", False))

    def tell(self, kind: type[Event], **fields: Any) -> None:
        """Make an event of this kind and hand it to all listeners, in order."""
        if not self._listeners:
            return
        step, seconds = self.where()
        self.hand_on(kind(step=step, seconds=seconds, **fields))

    def hand_on(self, event: Event) -> None:
        """Hand an event to all listeners, in order."""
        self.seconds = event.seconds
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                self._listeners.remove(listener)
                self.is_heard = bool(self._listeners)
                warnings.warn(
                    f"listener {listener!r} raised on {type(event).__name__} and is dropped:\n{traceback.format_exc()}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def note_once(self, topic: str, text: str) -> None:
        """Tell listeners, the first time this topic comes up."""
        self.say_once(topic, text, is_warning=False)

    def say_once(self, topic: str, text: str, *, is_warning: bool = True) -> None:
        """Tell listeners, the first time this topic comes up; with ``is_warning`` also warn the user."""
        if topic not in self._said:
            self._said.add(topic)
            if is_warning:
                warnings.warn(text, RuntimeWarning, stacklevel=4)
            from .run import Notice

            self.tell(Notice, text=text, is_warning=is_warning)

    warn_once = say_once
