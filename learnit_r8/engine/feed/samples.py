"""The samples of the user's batches: which ones a batch holds, and how those in quarantine are left out."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._validation import shortened
from ...table.exclusions import Exclusions
from ...table.names import Members

if TYPE_CHECKING:
    from ...events.bus import Announcer
    from ...recovery.agreement import Agreement
    from ...table.storage import SampleStorage


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
    name = WRAPPERS.get(_kind_of(source))
    return source if name is None or getattr(source, "skip_batches", False) else getattr(source, name)


def is_stateful(source: Any) -> bool:
    """Whether a loader is torchdata's `StatefulDataLoader`, which counts what it has drawn and what it has given."""
    return _kind_of(source) == ("torchdata", "StatefulDataLoader")


def _kind_of(source: Any) -> tuple[str, str]:
    """The package and the name of its class."""
    kind = type(source)
    return kind.__module__.partition(".")[0], kind.__name__


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
        if isinstance(sampler, _Watched):
            # The iteration before was left, or had ended, before a wrapped loader began its own.
            sampler = sampler.sampler
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
        try:
            item = next(self._batches)
        finally:
            if self._leave is not None:
                # What wraps a loader begins to iterate over it when it is asked for a batch.
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
        return iter(self.sampler) if self.watch is None else self.watch.begin()

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
        indices: Any = iter(self._sampler)
        self._indices = indices
        self._waiting.clear()
        if _has_state(indices):
            # A `StatefulDataLoader` asks the iterator of its sampler for it.
            self.state_dict, self.load_state_dict = indices.state_dict, indices.load_state_dict
        return self

    def __iter__(self) -> _Watch:
        return self

    def __next__(self) -> Any:
        num_before = 0
        while True:
            given = next(self._indices)
            if self._exclusions.quarantined is not self._known:
                self._known = self._exclusions.quarantined
                self._left_out = frozenset(self._known.tolist())
            indices = given
            if self._num_whole > 0:
                self._num_whole -= 1
            elif self._left_out:
                indices = self._without(given)
                if indices is None:
                    num_before += 1
                    continue
            self._waiting.append(Drawn(indices, num_before))
            return indices

    def _without(self, given: Any) -> Any:
        """What a sampler gives without the samples in quarantine; None if nothing is left."""
        if not isinstance(given, (list, tuple)):
            return None if _is_in(given, self._left_out) else given
        kept = [each for each in given if not _is_in(each, self._left_out)]
        if len(kept) == len(given):
            return given
        return kept or None


def _has_state(thing: Any) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _is_in(index: Any, left_out: frozenset[int]) -> bool:
    try:
        return index in left_out
    except TypeError:
        return False


Ids = Callable[[Any], Any] | str | int | None
Skip = Callable[[list[Any]], object] | None

OF_ONE_PROCESS = (
    "on several processes there is no table of the samples in your own batches, as each process knows only its own, so "
    "ids= and skip= have no effect; for a table let R8 draw the batches: attach(..., batch_size=)."
)


class BatchSamples:
    """Finds out which samples batches hold: from ``ids``, or by observing the loader if it is a `DataLoader`.

    Args:
        storage: The storage of the table.
        announcer: Tells of what is not known.
        agreement: Decides together with other ranks, if there are any.
        ids: A function of a batch, or the key under which a batch has them; None to observe them.
        skip: Called with the ids of the samples in quarantine, whenever they change.

    Raises:
        TypeError: ``ids`` or ``skip`` is something else.

    Attributes:
        is_known: Whether batches say which samples they hold.
        told: int64[K], the samples in quarantine of which ``skip`` was told.
    """

    def __init__(
        self, storage: SampleStorage, announcer: Announcer, agreement: Agreement, ids: Ids = None, skip: Skip = None
    ) -> None:
        if not (ids is None or callable(ids) or (isinstance(ids, (str, int)) and not isinstance(ids, bool))):
            raise TypeError(f"ids must be a function of a batch, the key of its ids, or None, got {shortened(ids)}.")
        if not (skip is None or callable(skip)):
            raise TypeError(f"skip must be a function of a list of ids, or None, got {skip!r}.")
        self._announcer, self._agreement, self._ids, self._skip = announcer, agreement, ids, skip
        self._storage = storage
        known = storage.ids
        assert known is not None
        self._known = known
        self._observes = False
        self.told = self._storage.exclusions.quarantined[:0]

    @property
    def is_known(self) -> bool:
        """Whether batches say which samples they hold."""
        return (self._ids is not None or self._observes) and self._agreement.ranks is None

    def prepare(self, source: Any) -> None:
        """Prepare for an iteration over a loader."""
        if self._agreement.ranks is not None and not (self._ids is None and self._skip is None):
            self._announcer.warn_once("of one process", OF_ONE_PROCESS)
        self._observes = self._ids is None and self._can_observe(source)
        if self._observes:
            self._storage.expect(size_of(source))
        self._storage.exclusions.are_left_out = self._observes or self._skip is not None
        self.tell_quarantined()

    def follow(self, before: BatchSamples) -> None:
        """Note what the iteration before has told, so that a release of the last sample is told, too."""
        if before is not self:
            self.told = before.told.copy()

    def _can_observe(self, source: Any) -> bool:
        if self._agreement.ranks is not None or not is_observable(source):
            return False
        known, size = self._known, size_of(source)
        if known.kind not in (None, "indices"):
            self._announcer.warn_once(
                "other ids",
                f"the table knows its samples by ids that are {known.kind}, so those of this DataLoader, which gives "
                "none, are not in it; give batches(..., ids=).",
            )
            return False
        if known.kind is not None and 0 < size < known.size:
            self._announcer.warn_once(
                "other data",
                f"the table is of {known.size} samples, and the data set of this DataLoader has {size}: it must be "
                "another one, so that its samples are not in the table; give batches(..., ids=).",
            )
            return False
        return True

    def open(self, source: Any, num_whole: int = 0) -> Iterator[Any]:
        """Begin to iterate over a loader.

        Args:
            source: The loader, or a copy of it.
            num_whole: Batches at its beginning that were drawn before any sample was in quarantine.
        """
        if not self._observes:
            return iter(source)
        return ObservedBatches(source, self._storage.exclusions, num_whole)

    def of(self, item: Any, batches: Iterator[Any]) -> tuple[Members | None, int]:
        """The samples of the batch that an iterator of `open` has just given; None if they are not known.

        With them, the number of batches since the one before that held nothing but samples in quarantine.

        Raises:
            TypeError, ValueError: ids are invalid, or of another kind than those before.
        """
        if self._observes:
            indices, num_before = batches.drawn  # type: ignore[attr-defined]
            try:
                rows = indices if type(indices) is list else list(indices) if type(indices) is tuple else [indices]
                members = self._storage.find(rows, are_indices=True)
            except (TypeError, ValueError, OverflowError):
                self._announcer.warn_once(
                    "no indices",
                    f"the sampler of the DataLoader must draw whole numbers, got {indices!r:.60}, so there is no table "
                    "of these samples; give batches(..., ids=).",
                )
                return None, num_before
            if self._known.num_beyond:
                self._tell_full()
            return members, num_before
        if not self.is_known:
            return None, 0
        if callable(self._ids):
            ids = self._ids(item)
        else:
            try:
                ids = item[self._ids]
            except (LookupError, TypeError):
                raise ValueError(
                    f"ids must be a key that every batch has, or a function of a batch, got {self._ids!r} for a "
                    f"{type(item).__name__} without it."
                ) from None
        return None if ids is None else self.find(ids), 0

    def find(self, ids: Any) -> Members:
        """The samples with these ids; see `SampleStorage.find`."""
        members = self._storage.find(ids, are_indices=False)
        if self._known.num_beyond:
            self._tell_full()
        return members

    def _tell_full(self) -> None:
        known = self._known
        self._announcer.note_once(
            "beyond",
            f"the table is full, at {known.most:,} samples; visits of others are only counted, {known.num_beyond:,} so "
            "far. max_ids=, which takes 16 bytes a sample, says how many it holds.",
        )

    def tell_quarantined(self) -> None:
        """Tell ``skip`` which samples are in quarantine, where others are than those that it was told of."""
        before, self.told = self.told, self._storage.exclusions.quarantined
        now = self.told
        if self._skip is not None and (len(now) or len(before)):
            self._skip([self._storage.name_of(index) for index in now.tolist()])
