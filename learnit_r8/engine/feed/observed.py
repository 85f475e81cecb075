"""Observed indices: which samples the batches of a `DataLoader` hold, judging by what its sampler gives the workers.

The sampler's own iterator is asked when the loader asks, and what it gives is noted on the way, in the training
process; so nothing is drawn twice or earlier, and workers of any kind see what they would have seen. Only samples in
quarantine are left out, once there are any.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ...table.exclusions import Exclusions


class Drawn(NamedTuple):
    """A batch that a sampler has drawn.

    Attributes:
        indices: Its samples.
        num_before: Batches drawn since the previous one that held only samples in quarantine.
    """

    indices: Any
    num_before: int


WRAPPERS = {("accelerate", "DataLoaderShard"): "base_dataloader", ("timm", "PrefetchLoader"): "loader"}
"""Loaders that pass on each batch of the `DataLoader` that they hold, in order, and the name that it has there."""


def inner_of(source: Any) -> Any:
    """The `DataLoader` whose batches a loader passes on; the loader itself if it wraps none."""
    kind = type(source)
    name = WRAPPERS.get((kind.__module__.partition(".")[0], kind.__name__))
    return source if name is None or getattr(source, "skip_batches", False) else getattr(source, name)


def is_stateful(source: Any) -> bool:
    """Whether a loader is torchdata's `StatefulDataLoader`, which counts what it has drawn and what it has given."""
    kind = type(source)
    return (kind.__module__.partition(".")[0], kind.__name__) == ("torchdata", "StatefulDataLoader")


def is_observable(source: Any) -> bool:
    """Whether the batches of a loader come in the order in which its sampler has drawn their indices."""
    data: Any = sys.modules.get("torch.utils.data")
    inner = inner_of(source)
    if data is None or not isinstance(inner, data.DataLoader) or isinstance(inner.dataset, data.IterableDataset):
        return False
    if is_stateful(inner):
        # What wraps it has counts of its own; an iteration that its state was asked for before has begun already.
        if inner is not source or inner._initial_iter_for_state_dict:
            return False
    # A class that iterates in its own way may fetch ahead, or leave batches out.
    elif type(inner).__iter__ is not data.DataLoader.__iter__:
        return False
    return bool(getattr(inner, "in_order", True) or not inner.num_workers)


def size_of(source: Any) -> int:
    """Samples in the data set of a loader; 0 where it does not say."""
    try:
        return len(source.dataset)
    except TypeError:
        return 0


class ObservedBatches:
    """The batches of a `DataLoader`, and the samples of the newest.

    Args:
        source: The loader.
        exclusions: The samples in quarantine.
        num_whole: Batches at the beginning that were drawn before there were any.

    Attributes:
        drawn: What the sampler has drawn for the batch that was given last.
    """

    def __init__(self, source: Any, exclusions: Exclusions, num_whole: int = 0) -> None:
        inner = inner_of(source)
        name = "sampler" if inner.batch_sampler is None else "batch_sampler"
        sampler = getattr(inner, name)
        self.drawn: Drawn = Drawn((), 0)
        self._waiting: deque[Drawn] = deque()
        watched = _Watched(sampler, _Watch(sampler, self._waiting, exclusions, num_whole))
        # Workers that stay from epoch to epoch stay with an iterator that knows the sampler by itself.
        lasting = getattr(inner, "_iterator", None)
        known = None if lasting is None else lasting._index_sampler

        def leave() -> None:
            object.__setattr__(inner, name, sampler)
            if lasting is not None:
                lasting._index_sampler = known
            # Whoever iterates over the loader besides is not watched.
            watched.watch = None

        # A DataLoader refuses to have its sampler changed; this is until its iteration has begun.
        object.__setattr__(inner, name, watched)
        if lasting is not None:
            lasting._index_sampler = watched
        self._leave: Callable[[], None] | None = leave
        try:
            self._batches: Iterator[Any] = iter(source)
        except BaseException:
            leave()
            raise
        self._counts: Any = self._batches if is_stateful(source) else None
        if inner is source:
            self._end_setup()

    def _end_setup(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def __iter__(self) -> ObservedBatches:
        return self

    def __next__(self) -> Any:
        if self._leave is None:
            item = next(self._batches)
        else:
            # What wraps a loader begins to iterate over it when it is asked for a batch.
            try:
                item = next(self._batches)
            finally:
                self._end_setup()
        counts, waiting = self._counts, self._waiting
        if counts is not None:
            # One that goes on from a state draws and drops what was given before.
            while len(waiting) > counts._sampler_iter_yielded - counts._num_yielded + 1:
                waiting.popleft()
        self.drawn = waiting.popleft()
        return item


class _Watched:
    """A sampler whose next iteration is watched.

    Args:
        sampler: The sampler.
        watch: Iterates over it; None for an iteration like any other.
    """

    def __init__(self, sampler: Any, watch: _Watch | None) -> None:
        self.sampler, self.watch = sampler, watch
        if _has_state(sampler):
            self.state_dict, self.load_state_dict = sampler.state_dict, sampler.load_state_dict

    def __iter__(self) -> Iterator[Any]:
        watch = self.watch
        if watch is None:
            return iter(self.sampler)
        return watch.begin()

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name in ("sampler", "watch"):
            raise AttributeError(name)
        return getattr(self.sampler, name)


class _Watch:
    """One iteration over a sampler.

    Args:
        sampler: The sampler.
        waiting: Gets what it draws.
        exclusions: The samples in quarantine.
        num_whole: Batches at the beginning from which none is left out.
    """

    def __init__(self, sampler: Any, waiting: deque[Drawn], exclusions: Exclusions, num_whole: int) -> None:
        self._sampler, self._waiting, self._exclusions, self._num_whole = sampler, waiting, exclusions, num_whole
        self._indices: Iterator[Any] = iter(())
        self._known = exclusions.quarantined
        self._left_out: frozenset[int] = frozenset(self._known.tolist())

    def begin(self) -> Iterator[Any]:
        """Begin it, when the loader does."""
        self._indices = iter(self._sampler)
        self._waiting.clear()
        return _StatefulWatch(self, self._indices) if _has_state(self._indices) else self

    def __iter__(self) -> _Watch:
        return self

    def __next__(self) -> Any:
        num_before = 0
        while True:
            given = next(self._indices)
            if self._exclusions.quarantined is not self._known:
                self._known = self._exclusions.quarantined
                self._left_out = frozenset(self._known.tolist())
            self._num_whole -= 1
            indices = given
            if self._left_out and self._num_whole < 0:
                indices = self._without(given)
                if indices is None:
                    num_before += 1
                    continue
            self._waiting.append(_new_tuple(Drawn, (indices, num_before)))
            return indices

    def _without(self, given: Any) -> Any:
        """What a sampler gives without the samples in quarantine; None if nothing is left."""
        if not isinstance(given, (list, tuple)):
            return None if _is_in(given, self._left_out) else given
        kept = [each for each in given if not _is_in(each, self._left_out)]
        if len(kept) == len(given):
            return given
        return kept or None


class _StatefulWatch:
    """An iteration over a sampler whose iterator has a state, as a `StatefulDataLoader` asks it for.

    Args:
        watch: The iteration.
        indices: The iterator of the sampler.
    """

    def __init__(self, watch: _Watch, indices: Any) -> None:
        self._watch, self.state_dict, self.load_state_dict = watch, indices.state_dict, indices.load_state_dict

    def __iter__(self) -> _StatefulWatch:
        return self

    def __next__(self) -> Any:
        return next(self._watch)


def _has_state(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _is_in(index: Any, left_out: frozenset[int]) -> bool:
    try:
        return index in left_out
    except TypeError:
        return False


_new_tuple = tuple.__new__
