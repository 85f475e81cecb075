"""A data set that counts steps, samples and seconds, for your own loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..triggers import Elapsed
from .period import Period, as_stop


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of the first array in it, else of the first list; 1 where there is neither.

    >>> batch_size(({"x": [10, 11, 12]}, "label"))
    3
    """
    return _size(batch) or 1


def _size(batch: Any) -> int | None:
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    if isinstance(batch, Mapping):
        return _first_size(batch.values())
    if isinstance(batch, tuple):
        return _first_size(batch)
    if isinstance(batch, list):
        return _first_size(batch) or len(batch) or None
    return None


def _first_size(parts: Iterable[Any]) -> int | None:
    for part in parts:
        size = _size(part)
        if size is not None:
            return size
    return None


def opened(dataset: Any) -> Iterator[Any]:
    """An iterator over a data set, which may be a function that returns one.

    Raises:
        TypeError: it is neither.
    """
    source = dataset() if callable(dataset) and not hasattr(dataset, "__iter__") else dataset
    try:
        return iter(source)
    except TypeError:
        raise TypeError(f"dataset must be an iterable, or a function that returns one, got {dataset!r}.") from None


class StopRule:
    """Says when to stop, with a clock reading of its own only where the answer depends on time.

    Args:
        condition: As `as_stop` gives it.
        elapsed: Where the run begins.
    """

    def __init__(self, condition: Callable[[Elapsed], Any] | None, elapsed: Elapsed) -> None:
        self._origin = time.monotonic() - elapsed.time
        self._condition = condition
        self._last = elapsed[:3]
        limits = condition.limits() if isinstance(condition, Period) else []
        self._most_steps = limits[0][1] if [unit for unit, _ in limits] == ["steps"] else None

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._origin

    def is_over(self, elapsed: Elapsed) -> bool:
        """Whether to stop after these steps and samples."""
        if self._condition is None:
            return False
        if self._most_steps is not None:
            return bool(elapsed.steps >= self._most_steps)
        now = (elapsed.steps, elapsed.samples, self.seconds())
        question, self._last = Elapsed(*now, *self._last), now
        return bool(self._condition(question))


def elapse(dataset: Any, *, stop: Any = None, elapsed: Elapsed | None = None) -> Iterator[tuple[Elapsed, Any]]:
    """Go through a data set and count, for your own loop.

    Args:
        dataset: An iterable of batches, or a function that returns one.
        stop: As in `loop`; no batch is taken from the data set beyond it.
        elapsed: Where to go on from.

    Yields:
        Steps, samples and seconds once this batch is finished, for triggers and bars; and the batch.

    Raises:
        TypeError: the data set is not iterable.
        ValueError: ``stop`` is not a condition.

    >>> [(elapsed.steps, elapsed.samples) for elapsed, _ in elapse([[1, 2], [3, 4], [5]])]
    [(1, 2), (2, 4), (3, 5)]
    """
    batches = opened(dataset)
    condition, _ = as_stop(stop)
    return _counted(batches, condition, Elapsed() if elapsed is None else elapsed)


def _counted(
    batches: Iterator[Any], condition: Callable[[Elapsed], Any] | None, elapsed: Elapsed
) -> Iterator[tuple[Elapsed, Any]]:
    watch = StopRule(condition, elapsed)
    if watch.is_over(elapsed):
        return
    for batch in batches:
        steps, samples, seconds = elapsed[:3]
        elapsed = Elapsed(steps + 1, samples + batch_size(batch), watch.seconds(), steps, samples, seconds)
        yield elapsed, batch
        if watch.is_over(elapsed):
            return
