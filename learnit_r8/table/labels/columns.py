"""Columns: the fields of many samples, read a block at a time, so that nothing of the size of all of them is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import Where

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
