"""The records: 16 bytes for every sample, copied as a whole.

One record holds everything about a sample, so a chunk of samples takes one gather and one scatter; separate arrays
would each cost a cache miss per sample. Zeros stand for an unseen sample, so the records of ten million samples need
no initialization.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import LEAST_BYTES, Warming, keep_room

LARGEST_LOSS = float(np.finfo(np.float32).max) / 4
"""Losses beyond this overflow the float32 table and count as infinite."""


RECORD = np.dtype([("loss", "<f4"), ("last", "<f4"), ("mean", "<f4"), ("usage_count", "<u2"), ("group", "<u2")])
"""One sample: estimate (loss, or loss relative to the trend), last observed loss, mean of the observed losses, use
count (saturating), code of the user's group."""

MOST_USES = 2**16 - 1

# numpy copies structured elements field by field; complex numbers of the same size are ten times as fast.
_WORD = np.complex128


MOST_WAITING, MOST_WAITING_BYTES = 1 / 64, 2**23
"""Largest size of the records queued until their memory is ready, as a share of the table's and in bytes; beyond it,
steps wait."""

PATIENCE = 0.002
"""Longest time that such a step waits, in seconds."""

_LEAST_ROOM = 2**21
"""Bytes of memory to keep for planning at least."""

_BLOCK = 2**18
"""Records that a reader of a snapshot copies at a time."""

_READER_SECONDS = 30.0

_MOST_AT_ONCE = 2**16
"""Most queued records written in one step."""


class Records:
    """The records of N samples.

    While the memory of a large table is not ready, writes are queued and carried out later; see `settle_some`. All
    methods except `gather` take the queue into account.

    Args:
        size: N, >= 1.
        dtype: 16 bytes a sample: `RECORD`, or another.
    """

    def __init__(self, size: int, dtype: np.dtype[Any] = RECORD) -> None:
        keep_room(max(_LEAST_ROOM, size * dtype.itemsize))
        self._all = np.zeros(size, dtype)
        self._dtype = dtype
        self._words = self._all.view(_WORD)
        self._warming = Warming(self._words) if self._words.nbytes >= LEAST_BYTES else None
        self._waiting: deque[_Waiting] = deque()
        self._snapshots: tuple[weakref.ref[Snapshot], ...] = ()

    def __getitem__(self, field: str) -> NDArray[Any]:
        """A field of every record: a view, which may be written to only after `release_snapshots`."""
        self.settle()
        return self._all[field]

    @property
    def whole(self) -> NDArray[Any]:
        """RECORD[N], every record: a view that must not be changed."""
        self.settle()
        return self._all

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Copies of some records: RECORD[M]."""
        self.settle()
        return self._words.take(indices).view(self._dtype)

    def gather(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Copies of some records, RECORD[M], none of which was written to in this sweep."""
        # Skipping the check of the range of indices saves a quarter of the time.
        return self._words.take(indices, mode="wrap").view(self._dtype)

    def put(self, indices: NDArray[np.int64], records: NDArray[Any]) -> None:
        """Write some records back."""
        if self._warming is None:
            self._store(indices, records.view(_WORD))
        else:
            self._waiting.append(_Waiting(indices, records.view(_WORD), len(self._words)))

    def _store(self, indices: NDArray[np.int64], words: NDArray[Any]) -> None:
        for reference in self._snapshots:
            snapshot = reference()
            if snapshot is not None and not snapshot.is_closed:
                snapshot.keep(indices)
        self._words[indices] = words

    def settle_some(self, seconds: float = 0.0) -> bool:
        """Write some of the queued records whose memory is ready.

        Args:
            seconds: Longest time to wait for more memory, if too many records are queued.

        Returns:
            Whether the run may continue without calling this again; False if too many records are queued.
        """
        warming = self._warming
        if warming is None:
            return True
        warming.advance(seconds if self._is_crowded else 0.0)
        room, num_ready = _MOST_AT_ONCE, warming.num_ready
        for waiting in self._waiting:
            indices, words = waiting.below(num_ready, room)
            self._store(indices, words)
            waiting.skip(len(indices))
            room -= len(indices)
            if not room:
                break
        while self._waiting and not self._waiting[0].size:
            self._waiting.popleft()
        if warming.is_done and not self._waiting:
            self._warming = None
        return not self._is_crowded

    @property
    def _is_crowded(self) -> bool:
        most = min(MOST_WAITING_BYTES, MOST_WAITING * self._words.nbytes)
        return sum(waiting.size for waiting in self._waiting) * _Waiting.EACH > most

    def settle(self) -> None:
        """Write all queued records."""
        while self._waiting:
            waiting = self._waiting[0]
            self._store(*waiting.below(len(self._words), waiting.size))
            self._waiting.popleft()

    @property
    def is_ready(self) -> bool:
        """Whether all memory is ready and no records are queued."""
        return self._warming is None or (self._warming.is_done and not self._waiting)

    def snapshot(self) -> Snapshot:
        """The current records, for another thread to read while the run continues; see `Snapshot`."""
        self.settle()
        snapshot = Snapshot(self._words, self._dtype)
        self._snapshots = (*(one for one in self._snapshots if one() is not None), weakref.ref(snapshot))
        return snapshot

    def release_snapshots(self) -> None:
        """Wait until all snapshots are closed; call it before writing to records other than by `put`.

        A snapshot that is still open after half a minute is closed, and its reader gets an error.
        """
        end = time.monotonic() + _READER_SECONDS
        for reference in self._snapshots:
            while (snapshot := reference()) is not None and not snapshot.is_closed:
                closed = snapshot.closed
                if time.monotonic() > end:
                    snapshot.close()
                # A snapshot that is dropped ends without being closed.
                del snapshot
                closed.wait(0.05)
        self._snapshots = ()

    def forget_waiting(self) -> None:
        """Drop what is queued, as all records are about to be replaced."""
        self._waiting.clear()


class _Waiting:
    """Queued or saved records, ordered by their position in the table.

    Args:
        indices: int64[M].
        words: _WORD[M].
        size: N.
    """

    EACH = 24
    """Bytes per record."""

    def __init__(self, indices: NDArray[np.int64], words: NDArray[Any], size: int) -> None:
        self._shift = max(0, size.bit_length() - 16)
        parts = (indices >> self._shift).astype(np.uint16)
        order = parts.argsort(kind="stable")
        self._parts, self._indices, self._words = parts[order], indices[order], words[order]
        self._written = 0
        self._num_samples = size

    @property
    def size(self) -> int:
        """Number of records that are not written yet."""
        return len(self._parts) - self._written

    def below(self, num_ready: int, most: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """At most ``most`` unwritten records that belong to the first ``num_ready`` positions, to within a part."""
        end = len(self._parts)
        if num_ready < self._num_samples:
            end = int(np.searchsorted(self._parts, np.uint16(num_ready >> self._shift)))
        # Two records for the same position are written in order, as the sort is stable.
        rows = slice(self._written, max(self._written, min(end, self._written + most)))
        return self._indices[rows], self._words[rows]

    def between(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The records that belong to the positions from ``start`` to ``stop``."""
        first, last = np.uint16(start >> self._shift), np.uint16((stop - 1) >> self._shift)
        rows = slice(np.searchsorted(self._parts, first), np.searchsorted(self._parts, last, side="right"))
        indices: NDArray[np.int64] = self._indices[rows]
        words: NDArray[Any] = self._words[rows]
        inside = (indices >= start) & (indices < stop)
        return indices[inside], words[inside]

    def skip(self, count: int) -> None:
        """Note that ``count`` more records are written."""
        self._written += count
        if 2 * self._written > len(self._parts):
            rest = slice(self._written, None)
            self._parts, self._indices = self._parts[rest].copy(), self._indices[rest].copy()
            self._words, self._written = self._words[rest].copy(), 0


class Snapshot:
    """The records at the time it was taken, for another thread to read while the run continues.

    Before a record is written, the old one is saved here. A reader first copies records and then replaces those that
    were saved, so it gets the old values of all that may have changed while it copied.

    Args:
        words: The words of all records.
        dtype: Of a record.

    Attributes:
        closed: Set by `close`.
        dtype: As given.
    """

    def __init__(self, words: NDArray[Any], dtype: np.dtype[Any] = RECORD) -> None:
        self.closed = threading.Event()
        self.dtype = dtype
        self._words = words
        self._kept: list[_Waiting] = []
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self._words)

    def keep(self, indices: NDArray[np.int64]) -> None:
        """Save some records, as they are about to be written."""
        self._kept.append(_Waiting(indices, self._words.take(indices), len(self._words)))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """RECORD[M], the records from ``start`` to ``stop`` at the time of the snapshot.

        Raises:
            RuntimeError: the snapshot is closed.
        """
        words: NDArray[Any] = self._words[start:stop].copy()
        # The newest first, so that the oldest of several wins.
        for kept in reversed(self._kept.copy()):
            indices, old = kept.between(start, stop)
            words[indices - start] = old
        if self.is_closed:
            raise RuntimeError("the snapshot must be read before it is closed.")
        return words.view(self.dtype)

    def close(self) -> None:
        """End reading: later writes need not save old records."""
        self.closed.set()
        self._kept.clear()

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, or belongs to the process from which this one was forked."""
        return self.closed.is_set() or self._pid != os.getpid()


class Column:
    """A field of all records of a snapshot, read block by block; it converts to an array where one is needed.

    Args:
        snapshot: The snapshot of the records.
        field: The field's name.

    Attributes:
        dtype: The dtype of the values.
        shape: (N,).
    """

    def __init__(self, snapshot: Snapshot, field: str) -> None:
        self.dtype: np.dtype[Any] = snapshot.dtype[field]
        self.shape = (len(snapshot),)
        self._snapshot = snapshot
        self._field = field

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """The values, block by block."""
        for start in range(0, len(self), _BLOCK):
            rows = self._snapshot.rows(start, min(start + _BLOCK, len(self)))
            yield np.ascontiguousarray(rows[self._field])

    def close(self) -> None:
        """Close the snapshot."""
        self._snapshot.close()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values: NDArray[Any] = np.concatenate(list(self.blocks()))
        return values if dtype is None else values.astype(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are ordinary arrays.
        return np.asarray, (self.__array__(),)


def reordered(records: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """Return ``records[order]``, faster than indexing."""
    return records.view(_WORD).take(order).view(RECORD)


def count_use(records: NDArray[Any]) -> NDArray[np.float32]:
    """Count one more use of each record; float32[M], the new counts."""
    uses = records["usage_count"]
    uses += np.uint16(1)
    if not uses.all():
        uses[uses == 0] = MOST_USES
    counts: NDArray[np.float32] = uses.astype(np.float32)
    return counts
