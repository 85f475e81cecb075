"""The records: 16 bytes for every sample, moved whole.

One record holds everything about a sample, so that a chunk of samples costs one gather and one scatter; separate
arrays would cost a cache miss a sample each. An unseen sample is one with no use, so that the records of ten million
samples are ready without being written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_LOSS = float(np.finfo(np.float32).max) / 4
"""Losses beyond this overflow the float32 table and count as infinite."""


RECORD = np.dtype([("loss", "<f4"), ("last", "<f4"), ("mean", "<f4"), ("usage_count", "<u2"), ("group", "<u2")])
"""One sample: estimate (loss, or loss relative to the trend), last observation, mean of the observations, times
learned from (saturating), code of the user's group."""

MOST_USES = 2**16 - 1

# numpy moves a structured element field by field, and a complex number of the same size ten times as fast.
_WORD = np.complex128


class Records:
    """The records of N samples.

    Args:
        size: N, >= 1.
    """

    def __init__(self, size: int) -> None:
        self._all = np.zeros(size, RECORD)
        self._words = self._all.view(_WORD)
        self._writing: Callable[[], object] | None = None

    def __getitem__(self, field: str) -> NDArray[Any]:
        """A field of every record: a view."""
        return self._all[field]

    @property
    def whole(self) -> NDArray[Any]:
        """RECORD[N], every record: a view, to look at only."""
        return self._all

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Copies of some records: RECORD[M]."""
        return self._words.take(indices).view(RECORD)

    def put(self, indices: NDArray[np.int64], records: NDArray[Any]) -> None:
        """Write some records back."""
        self._words[indices] = records.view(_WORD)

    def write(self, store: Callable[[], object]) -> None:
        """Store what belongs together, all of it even if that is interrupted: ``store`` may be called twice."""
        self._writing = store
        self.finish_writing()

    def finish_writing(self) -> None:
        """Complete a `write` that was interrupted."""
        if self._writing is not None:
            self._writing()
            self._writing = None

    def forget_writing(self) -> None:
        """Leave a `write` that was interrupted as it is: all records are about to be replaced."""
        self._writing = None


def reordered(records: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """``records[order]``."""
    return records.view(_WORD).take(order).view(RECORD)


def count_use(records: NDArray[Any]) -> NDArray[np.float32]:
    """Count one more use of each record; float32[M], the new counts."""
    uses = records["usage_count"]
    uses += np.uint16(1)
    if not uses.all():
        uses[uses == 0] = MOST_USES
    counts: NDArray[np.float32] = uses.astype(np.float32)
    return counts
