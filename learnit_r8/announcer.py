"""The announcer: tells listeners what happened, and the user what should be known once."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from .events import Event, Listener, Notice


class Announcer:
    """Tells listeners what happened; one that raises is dropped with a warning, because a viewer must not end a run.

    Args:
        listeners: Called with every event, in this order.
        where: Returns the step and the training seconds of now.

    Raises:
        TypeError: a listener is not callable.

    Attributes:
        is_heard: Whether anybody listens; else events need not be made.
        wants_surveys: Whether a listener has a true attribute of that name, and wants `SamplesSurveyed`.
        seconds: Training seconds when something was last told.
    """

    def __init__(self, listeners: Iterable[Listener], where: Callable[[], tuple[int, float]]) -> None:
        self._where = where
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
        """Tell this one too from now on.

        Raises:
            TypeError: it is not callable.
        """
        if not callable(listener):
            raise TypeError(f"listeners must be callables that take an event, got {listener!r}.")
        self._listeners.append(listener)
        self.is_heard = True
        self.wants_surveys |= bool(getattr(listener, "wants_surveys", False))

    def tell(self, kind: type[Event], **fields: Any) -> None:
        """Hand an event of this kind to everyone, in order."""
        if not self._listeners:
            return
        step, seconds = self._where()
        self.hand_on(kind(step=step, seconds=seconds, **fields))

    def where(self) -> tuple[int, float]:
        """The step and the training seconds of now."""
        return self._where()

    def hand_on(self, event: Event) -> None:
        """Hand an event to everyone, in order."""
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
        if topic not in self._said:
            self._said.add(topic)
            self.tell(Notice, text=text, is_warning=False)

    def warn_once(self, topic: str, text: str) -> None:
        """Warn the user, the first time this topic comes up."""
        if topic not in self._said:
            self._said.add(topic)
            warnings.warn(text, RuntimeWarning, stacklevel=4)
            self.tell(Notice, text=text, is_warning=True)
