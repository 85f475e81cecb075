"""The records: 16 bytes for every sample, copied as a whole.

One record holds everything about a sample, so a chunk of samples takes one gather and one scatter; separate arrays
would each cost a cache miss per sample. Zeros stand for an unseen sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_LOSS = float(np.finfo(np.float32).max) / 4
"""Losses beyond this overflow the float32 table and count as infinite."""


RECORD = np.dtype([("loss", "<f4"), ("last", "<f4"), ("mean", "<f4"), ("usage_count", "<u2"), ("group", "<u2")])
"""One sample: estimate (loss, or loss relative to the trend), last observed loss, mean of the observed losses, use
count (saturating), code of the user's group."""

MOST_USES = 2**16 - 1

_PAGE = 4096 // 16
"""Records of 16 bytes in a page of memory."""

LEAST_ROOM = 1024
"""Records that there is room for at least, once records are added."""

SLICE = 2**16
"""Records that are copied at a time: some .3 ms, and what is copied stays in the processor's cache."""

Lock = AbstractContextManager[Any]
Where = slice | NDArray[np.int64]
ALL = slice(None)


class Records:
    """The records of N samples.

    Args:
        size: N, >= 1.
        dtype: 16 bytes a sample: `RECORD`; or a multiple of them.

    Attributes:
        whole: RECORD[N], every record, for the thread that learns.
    """

    def __init__(self, size: int, dtype: np.dtype[Any] = RECORD) -> None:
        self._room = self.whole = np.zeros(size, dtype)
        # The system allocates and clears a page when it is first written to. The first chunk of a random order writes
        # to nearly all of them, so a step would wait for that.
        self.whole[:: _PAGE * 16 // dtype.itemsize] = np.zeros((), dtype)

    def __len__(self) -> int:
        return len(self.whole)

    def resize(self, size: int) -> None:
        """Have this many records, of which new ones are zero; the caller holds the lock of whoever looks at them.

        There is room for as many again, so that records which come one by one are copied twice on average.
        """
        if size > len(self._room):
            room = np.zeros(max(size, 2 * len(self._room), LEAST_ROOM), self.whole.dtype)
            room[: len(self.whole)] = self.whole
            self._room = room
        elif size < len(self.whole):
            self._room[size:] = np.zeros((), self.whole.dtype)
        self.whole = self._room[:size]

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Copies of some records: RECORD[M]."""
        return self.whole.take(indices)

    def put(self, indices: NDArray[np.int64], records: NDArray[Any]) -> None:
        """Write some records back."""
        self.whole[indices] = records

    def slices(self, lock: Lock | None = None, where: Where = ALL) -> Iterator[Slice]:
        """Pass over the records, some at a time, each time holding the lock.

        Args:
            lock: Held while the caller looks at a slice, and free in between, so that no step waits for all of them.
            where: The records to pass over: a slice without a step, or int64[M].

        Yields:
            The positions of the slice among those passed over, and RECORD[<= 65536]: a view if ``where`` is a slice.
        """
        lock = nullcontext() if lock is None else lock
        where = self._clipped(where)
        begin, count = where.start if isinstance(where, slice) else 0, _count_of(where)
        for start in range(0, count, SLICE):
            place = slice(start, min(start + SLICE, count))
            with lock:
                # Asked for each time, as it is another array once records have been added.
                if isinstance(where, slice):
                    yield place, self.whole[begin + place.start : begin + place.stop]
                else:
                    yield place, self.take(where[place])

    def columns(
        self, fields: Sequence[str] = (), lock: Lock | None = None, where: Where = ALL, *,
        value_of: Callable[[str, NDArray[Any]], NDArray[Any]] = lambda name, some: some[name],
    ) -> dict[str, NDArray[Any]]:  # fmt: skip
        """Copies of fields, by name; see `slices`.

        Args:
            fields: Their names; none for all.
            lock: See `slices`.
            where: See `slices`.
            value_of: Returns a field of some records as it is to be shown; by default as it is.
        """
        where, dtype = self._clipped(where), self.whole.dtype
        found = {name: np.empty(_count_of(where), dtype[name]) for name in fields or dtype.names or ()}
        for place, records in self.slices(lock, where):
            for name, values in found.items():
                values[place] = value_of(name, records)
        return found

    def _clipped(self, where: Where) -> Where:
        """The same places; of a slice those of the records that there are now: more may be added meanwhile."""
        return slice(*where.indices(len(self))) if isinstance(where, slice) else where


def _count_of(where: Where) -> int:
    """Number of places in a slice with both ends, or in int64[M]."""
    return max(0, where.stop - where.start) if isinstance(where, slice) else len(where)


Slice = tuple[slice, NDArray[Any]]


def count_use(records: NDArray[Any]) -> NDArray[np.float32]:
    """Count one more use of each record; float32[M], the new counts."""
    uses = records["usage_count"]
    uses += np.uint16(1)
    counts: NDArray[np.float32] = uses.astype(np.float32)
    if not counts.min(initial=1):
        uses[uses == 0] = counts[counts == 0] = MOST_USES
    return counts


BLOCK = 2**18
"""Samples that are read at a time: some megabytes, which stay in the processor's cache."""

Fields = dict[str, NDArray[Any]]


class Columns:
    """The fields of N samples, by name.

    Args:
        size: N.
        read: Returns some fields of some samples: takes the names, and a slice or int64[M].
        names: The names of the fields.

    Attributes:
        names: As given.
    """

    def __init__(
        self, size: int, read: Callable[[Sequence[str], Where], Fields], names: Sequence[str] | None = None
    ) -> None:
        self._size, self._read = size, read
        self.names = tuple(names or ())

    @classmethod
    def of(cls, fields: Any, measure: str) -> Columns:
        """Columns that are arrays already.

        Args:
            fields: Arrays by field name, or a structured array; columns are returned as they are.
            measure: A field that there is in any case.
        """
        if isinstance(fields, Columns):
            return fields
        names = tuple(fields.keys() if hasattr(fields, "keys") else fields.dtype.names)
        return cls(len(fields[measure]), lambda names, where: {name: fields[name][where] for name in names}, names)

    def __len__(self) -> int:
        return self._size

    def read(self, *fields: str, where: NDArray[np.int64] | None = None) -> Fields:
        """Some fields of some samples, by default of all; may be views of them."""
        return self._read(fields, slice(0, self._size) if where is None else where)

    def blocks(self, *fields: str, least: int = 0, multiple: int = 1) -> Iterator[tuple[int, Fields]]:
        """The position of the first sample of each block of at least so many, and some fields of its samples.

        Args:
            fields: Their names.
            least: Least samples in a block.
            multiple: What the samples in a block must be a multiple of.
        """
        size = -(-max(BLOCK, least) // multiple) * multiple
        for start in range(0, self._size, size):
            yield start, self._read(fields, slice(start, min(start + size, self._size)))


def spread(size: int, count: int) -> NDArray[np.int64]:
    """int64[<= count], random positions in [0, size), ascending and distinct, spread evenly; always the same ones."""
    # One of each of so many stretches. To draw freely, sort, and drop what is there twice, takes ten times as long.
    places = ((np.arange(count) + np.random.default_rng(0).random(count)) * (size / count)).astype(np.int64)
    return places[np.flatnonzero(np.diff(places, append=size))]
