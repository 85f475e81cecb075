"""The announcer: passes events to listeners, and warns the user once of each topic; and what viewers may ask for."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from . import Notice, launcher
from .caller import warn
from .event import Event, Listener


class RunControl(Protocol):
    """Takes the requests of keys and of files to a training; see `engine.control.Requests`."""

    @property
    def is_paused(self) -> bool: ...

    def stop(self, reason: str = "") -> None: ...

    def save(self) -> None: ...

    def pause(self, reason: str = "") -> None: ...

    def resume(self) -> None: ...

    def cool_down(self, span: Any = None, source: str = "") -> None: ...

    def refuse(self, text: str) -> None: ...


class Announcer:
    """Passes events to listeners; one that raises is dropped with a warning, because a viewer must not end a run.

    Args:
        listeners: Called with every event, in this order.
        where: Returns the current step and training seconds; an attribute, too.

    Raises:
        TypeError: a listener is not callable.

    Attributes:
        is_heard: Whether there is a listener to every event; without one those of usual steps need not be made. A
            listener may say in an attribute ``hears`` which kinds alone it wants.
        wants_surveys: Whether a listener wants `SamplesSurveyed`: its attribute of this name is true. One that shows
            events on the terminal says so in an attribute ``is_on_terminal``.
        seconds: Training seconds of the last event.
        is_held: Whether events wait, as a call is changing the run.
    """

    def __init__(self, listeners: Iterable[Listener], where: Callable[[], tuple[int, float]]) -> None:
        self.where = where
        self._said: set[str] = set()
        self._is_first = not launcher.rank_of()
        self._waiting: deque[Event | str] = deque()
        self._is_delivering = False
        self.is_held = False
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
        self.is_heard = self._is_any_heard()
        self.wants_surveys |= bool(getattr(listener, "wants_surveys", False))

    def _is_any_heard(self) -> bool:
        return any(getattr(each, "hears", Event) is Event for each in self._listeners)

    def tell(self, kind: type[Event], **fields: Any) -> None:
        """Make an event of this kind and pass it to all listeners, in order."""
        if not self.is_heard and not any(issubclass(kind, getattr(each, "hears", Event)) for each in self._listeners):
            return
        step, seconds = self.where()
        self.deliver(kind(step=step, seconds=seconds, **fields))

    def deliver(self, event: Event | None = None) -> None:
        """Hand an event, after those that wait, to all listeners, and warnings to the user; one after another.

        Listeners may call the scheduler: what it tells them then comes after what they hear now.
        """
        if event is not None:
            self.seconds = event.seconds
            self._waiting.append(event)
        # Whoever is at it already, a listener's own call or another thread, hands these on, too.
        if self.is_held or not self._waiting or self._is_delivering:
            return
        try:
            self._is_delivering = True
            while self._waiting:
                waiting = self._waiting.popleft()
                if isinstance(waiting, str):
                    warn(waiting)
                    continue
                for listener in list(self._listeners):
                    if isinstance(waiting, getattr(listener, "hears", Event)):
                        try:
                            listener(waiting)
                        except Exception:
                            self._listeners.remove(listener)
                            self.is_heard = self._is_any_heard()
                            name = type(waiting).__name__
                            warn(f"listener {listener!r} raised on {name} and is dropped:\n{traceback.format_exc()}")
        finally:
            self._is_delivering = False

    def note_once(self, topic: str, text: str) -> None:
        """Tell listeners, the first time this topic comes up."""
        self.say_once(topic, text, is_warning=False)

    def say_once(self, topic: str, text: str, *, is_warning: bool = True) -> None:
        """Tell listeners, the first time this topic comes up; with ``is_warning`` also warn the user."""
        if topic not in self._said:
            self._said.add(topic)
            if is_warning:
                self._waiting.append(text)
            self.tell(Notice, text=text, is_warning=is_warning)
            self.deliver()

    warn_once = say_once

    def warn_unseen(self, topic: str, text: str) -> None:
        """Warn the user, the first time this topic comes up, of what events tell, unless a listener shows them.

        Of several ranks the first one warns, as all of them find the same.
        """
        if topic in self._said:
            return
        self._said.add(topic)
        if self._is_first and not any(getattr(each, "is_on_terminal", False) for each in self._listeners):
            self._waiting.append(text)
            self.deliver()
