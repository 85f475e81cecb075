"""PAMIQ's schedulers: objects that are updated in a loop and call their callbacks when it is time."""

from __future__ import annotations

import abc
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from .._validation import whole_number
from .trigger import crosses, early, seconds

Callback = Callable[[], object]
"""What a scheduler calls; its result is ignored."""


class Scheduler(abc.ABC):
    """Calls its callbacks at the updates at which it `is_available`.

    A subclass says when in `is_available`; if it overrides `update` too, it calls ``super().update()``. Updates may
    come from several threads: each occasion is taken by one of them.

    Args:
        callbacks: A function without arguments, several of them, or none.

    Raises:
        TypeError: a callback is not callable.
    """

    def __init__(self, callbacks: Callback | Iterable[Callback] | None = None) -> None:
        self._callbacks: list[Callback] = []
        self._lock = threading.RLock()
        for callback in () if callbacks is None else (callbacks,) if callable(callbacks) else callbacks:
            self.register_callback(callback)

    def register_callback(self, callback: Callback) -> None:
        """Call this one too, after those before it.

        Raises:
            TypeError: it is not callable.
        """
        if not callable(callback):
            raise TypeError(f"callback must be a function without arguments, got {callback!r}.")
        self._callbacks.append(callback)

    def remove_callback(self, callback: Callback) -> None:
        """Stop calling this one, from the next occasion on; a callback may remove itself.

        Raises:
            ValueError: it is not registered.
        """
        if callback not in self._callbacks:
            raise ValueError(f"callback must be one that is registered, got {callback!r}.")
        self._callbacks.remove(callback)

    @abc.abstractmethod
    def is_available(self) -> bool:
        """Whether the callbacks are to be called now; asked once an update."""

    def update(self) -> None:
        """Call the callbacks if it is time, each of them even if one before it raises; then raise what it raised."""
        with self._lock:
            is_due = self._take()
        if is_due:
            _call_each(iter(tuple(self._callbacks)))

    def _take(self) -> bool:
        """Return whether it is due; if so, it counts as done, whatever the callbacks do afterwards."""
        return self.is_available()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on in the same rhythm."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from a saved state; callbacks are not part of it."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())


def _call_each(callbacks: Iterator[Callback]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            _call_each(callbacks)
            raise


class StepIntervalScheduler(Scheduler):
    """Calls its callbacks at every ``interval``-th update.

    Args:
        interval: Updates between two occasions, >= 1.
        callbacks: A function without arguments, several of them, or none.
        offset: Update of the first occasion, >= 1; by default ``interval``.

    Raises:
        ValueError: the interval or the offset is not whole or out of its range.
        TypeError: a callback is not callable.

    >>> scheduler = StepIntervalScheduler(2, lambda: print("called"))
    >>> for _ in range(5):
    ...     scheduler.update()
    called
    called
    """

    def __init__(
        self,
        interval: int,
        callbacks: Callback | Iterable[Callback] | None = None,
        *,
        offset: int | None = None,
    ) -> None:
        super().__init__(callbacks)
        self._interval = whole_number("interval", interval, least=1)
        self._offset = self._interval if offset is None else whole_number("offset", offset, least=1)
        self._steps = 0
        self._last = self._offset - self._interval

    def is_available(self) -> bool:
        """Whether an occasion has come that was not taken yet."""
        return crosses(self._last, self._steps, self._interval, self._offset)

    def _take(self) -> bool:
        self._steps += 1
        is_due = self.is_available()
        if is_due:
            self._last = self._steps
        return is_due

    def state_dict(self) -> dict[str, Any]:
        """Updates so far and the one of the last occasion."""
        return {"steps": self._steps, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._steps, self._last = state["steps"], state["last"]


class TimeIntervalScheduler(Scheduler):
    """Calls its callbacks at the first update after each multiple of ``interval`` seconds.

    Time is that of ``time.monotonic``, from the construction on. The grid stands still: slow callbacks and rare
    updates delay an occasion and never the ones after it. Lines that went by together are one occasion.

    Args:
        interval: Seconds between two occasions, >= 0, or a timedelta; 0 means every update.
        callbacks: A function without arguments, several of them, or none.
        offset: Seconds to the first occasion, >= 0; 0 for the first update. By default ``interval``.

    Raises:
        ValueError: the interval or the offset is not finite or below 0.
        TypeError: a callback is not callable.
    """

    def __init__(
        self,
        interval: float | timedelta,
        callbacks: Callback | Iterable[Callback] | None = None,
        *,
        offset: float | timedelta | None = None,
    ) -> None:
        super().__init__(callbacks)
        self._interval = seconds("interval", interval, zero_is_fine=True)
        first = self._interval if offset is None else seconds("offset", offset, zero_is_fine=True)
        self._offset = early(first, self._interval)
        self._origin = time.monotonic()
        self._now = 0.0
        self._last = self._offset - self._interval

    def is_available(self) -> bool:
        """Whether an occasion has come that was not taken yet; reads the clock once."""
        self._now = time.monotonic() - self._origin
        if not self._interval:
            return self._now >= self._offset
        return crosses(self._last, self._now, self._interval, self._offset)

    def _take(self) -> bool:
        is_due = self.is_available()
        if is_due:
            self._last = self._now
        return is_due

    def __getstate__(self) -> dict[str, Any]:
        # The clock of another process begins elsewhere.
        return {**super().__getstate__(), "_origin": time.monotonic() - self._origin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_origin": time.monotonic() - state["_origin"]})

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far and those of the last occasion."""
        return {"seconds": time.monotonic() - self._origin, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the time in between does not count."""
        self._origin = time.monotonic() - state["seconds"]
        self._last = state["last"]
