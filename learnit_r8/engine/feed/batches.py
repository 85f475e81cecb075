"""The user's iterable as a loop sees it: its items, passed on as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_size import BatchMeasure
    from .feed import Feed
    from .samples import BatchSamples


class Batches:
    """The user's iterable, whose items a run passes on as they are; each iteration is an epoch.

    Args:
        feed: Takes them.
        source: The iterable.
        measure: Reads the size of a batch.
        samples: Finds out which samples it holds.

    What it has no attribute for is that of the iterable: ``len()``, ``set_epoch()`` and all others.
    """

    def __init__(self, feed: Feed, source: Any, measure: BatchMeasure, samples: BatchSamples) -> None:
        self._feed, self._source, self._measure, self._samples = feed, source, measure, samples

    def __iter__(self) -> Iterator[Any]:
        return self._feed.iterate(self._source, self._measure, self._samples)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name in ("_source", "_feed", "_measure", "_samples"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __repr__(self) -> str:
        return f"Batches({self._source!r})"
