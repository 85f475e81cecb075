"""Exclusions: samples that are no longer drawn, and suspect samples, which are spread over the batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _read_only(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    indices.flags.writeable = False
    return indices


def holds(known: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[M], which of some indices are among the known ones, which are in ascending order."""
    if not len(known):
        return np.zeros(len(indices), bool)
    places = np.minimum(np.searchsorted(known, indices), len(known) - 1)
    found: NDArray[np.bool_] = known[places] == indices
    return found


_NOBODY = _read_only(np.empty(0, np.int64))


class Exclusions:
    """Samples in quarantine, and samples under watch, by index.

    Attributes:
        quarantined: int64[K], the samples that are no longer drawn, in order; read-only.
        watched: int64[K], samples to spread over the batches; read-only.
        are_left_out: Whether whoever gives the batches leaves those in quarantine out.
    """

    def __init__(self) -> None:
        self.quarantined = self.watched = _NOBODY
        self.are_left_out = True

    def holds(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool[M], which of some samples are in quarantine."""
        return holds(self.quarantined, indices)

    def quarantine(self, indices: NDArray[np.int64]) -> None:
        """Stop drawing some samples, from the next chunk on."""
        self.quarantined = _read_only(np.union1d(self.quarantined, indices))

    def release(self, indices: NDArray[np.int64]) -> None:
        """Draw some quarantined samples again."""
        self.quarantined = _read_only(np.setdiff1d(self.quarantined, indices))

    def watch(self, indices: NDArray[np.int64]) -> None:
        """Spread these samples, and no others, over the batches from the next chunk on."""
        self.watched = _read_only(np.unique(indices))

    def state_dict(self) -> dict[str, Any]:
        """Both, copied."""
        return {"quarantined": self.quarantined.copy(), "watched": self.watched.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.quarantined = _read_only(np.array(state["quarantined"], np.int64))
        self.watched = _read_only(np.array(state["watched"], np.int64))
