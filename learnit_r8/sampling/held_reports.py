"""Reports of the user's own batches that say which samples they hold, until the table learns them together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..policies.radix import order_of
from ..table.labels.predictions import joined
from ..table.losses import EXACT, WHOLE_BATCH
from ..table.names import Members
from .chunk import CLOSED, OPEN, REPORTED, FollowedChunk

if TYPE_CHECKING:
    from ..table.table import SampleTable


Ints = NDArray[np.int64]


class _Held(NamedTuple):
    """A batch that is out, or whose report the table has not learned: a chunk without what the loader gave."""

    members: Members
    states: bytearray
    reports: list[Any]
    trends: list[float]
    predictions: dict[int, NDArray[np.float32]]


class HeldReports:
    """Holds the reports of batches that say which samples they hold, until the table is to learn them.

    Args:
        table: Learns them.

    Attributes:
        num_samples: Samples of the batches that are held.
    """

    def __init__(self, table: SampleTable) -> None:
        self._table = table
        self.clear()

    def clear(self) -> None:
        """Drop them all."""
        self._held: list[_Held] = []
        self.num_samples = 0

    def add(self, members: Members, batch: FollowedChunk) -> None:
        """Hold a batch, which is reported later or given up."""
        self._held.append(_Held(members, batch.states, batch.reports, batch.trends, batch.predictions))
        self.num_samples += len(members[0])

    def hand_over(self) -> None:
        """Let the table learn all reports so far."""
        if not self._held:
            return
        reported = [each for each in self._held if each.states[0] == REPORTED]
        kind = self._table.storage.part_size
        for some in rounds([part for each in reported if (part := Part.of(each, kind)) is not None]):
            self._learn(some, is_exact=kind == EXACT)
        for each in reported:
            # Those from which nothing could be learned, too.
            each.states[0] = CLOSED
        # Last: if this is interrupted, those not learned are learned the next time.
        self._held = [each for each in self._held if each.states[0] == OPEN]
        self.num_samples = sum(len(each.members.indices) for each in self._held)

    def _learn(self, parts: list[Part], *, is_exact: bool) -> None:
        """Learn from parts of batches that share no sample."""
        indices = _joined(parts)
        means = np.concatenate([each.means for each in parts])
        counts = [len(each.means) for each in parts]
        trend = np.repeat(np.array([each.trend for each in parts]), counts)
        sizes = None if is_exact else np.concatenate([each.sizes for each in parts])

        def done() -> None:
            for each in parts:
                if each.is_last:
                    each.states[0] = CLOSED

        self._table.learner.learn(indices, means, sizes, trend, predictions=_predictions(parts), done=done)


class Part(NamedTuple):
    """The report of a batch, or of those samples of it that it held for the n-th time.

    Attributes:
        indices: int64[M], its samples.
        means: float64[P], the mean loss of consecutive ones.
        sizes: int64[P], how many each of them is of; None where each sample has its own.
        trend: The trend before it.
        states: Of its batch.
        predictions: float32[3 P, M], or None.
        is_last: Whether the batch is learned with it.
    """

    indices: Ints
    means: NDArray[np.float64]
    sizes: Ints | None
    trend: float
    states: bytearray
    predictions: NDArray[np.float32] | None = None
    is_last: bool = True

    @classmethod
    def of(cls, held: _Held, kind: int | None) -> Part | None:
        """The report of a batch; None if nothing can be learned from it."""
        (indices, counts), means = held.members, held.reports[0]
        if not len(indices):
            return None
        rows = held.predictions[0] if held.predictions and counts is None else None
        sizes: Ints | None = None
        if kind == WHOLE_BATCH:
            means, sizes = np.array([means], np.float64), np.array([len(indices)])
        elif np.ndim(means) == 0:
            # One mean, where the table learns from losses of rows.
            return None
        elif kind == EXACT:
            means = means if counts is None else np.repeat(means, counts)
        elif counts is None:
            sizes = np.ones(len(indices), np.int64)
        else:
            means, sizes = means[counts > 0], counts[counts > 0]
        return cls(indices, means, sizes, held.trends[0], held.states, rows)

    def only(self, chosen: NDArray[np.bool_], *, is_last: bool) -> Part:
        """The same of some of its samples alone."""
        rows = None if self.predictions is None else self.predictions[:, chosen]
        if self.sizes is None:
            means, sizes = self.means[chosen], None
        else:
            left = np.add.reduceat(chosen.astype(np.int64), np.cumsum(self.sizes) - self.sizes)
            means, sizes = self.means[left > 0], left[left > 0]
        return Part(self.indices[chosen], means, sizes, self.trend, self.states, rows, is_last)


def rounds(parts: list[Part]) -> Iterator[list[Part]]:
    """Parts in their order, cut where a sample comes again; without samples that are not kept."""
    if not parts:
        return
    indices = _joined(parts)
    ordered = indices.take(order_of(indices))
    if ordered[0] >= 0 and (ordered[1:] != ordered[:-1]).all():
        yield parts
        return
    newest = _newest_before(parts)
    if ordered[0] < 0 or (newest == np.arange(len(parts))).any():
        parts = [some for each in parts for some in distinct(each)]
        newest = _newest_before(parts)
    start = 0
    for place, last in enumerate(newest.tolist()):
        if last >= start:
            yield parts[start:place]
            start = place
    if parts:
        yield parts[start:]


def _joined(parts: list[Part]) -> Ints:
    """int64[M], the samples of all parts."""
    return np.concatenate([np.empty(0, np.int64), *(each.indices for each in parts)])


def _newest_before(parts: list[Part]) -> Ints:
    """int64[P], the newest part up to each that holds one of its samples, itself if one is in it twice; -1 for none."""
    indices = _joined(parts)
    order = order_of(indices)
    again = np.flatnonzero(np.diff(indices[order]) == 0)
    place = np.repeat(np.arange(len(parts)), [len(each.indices) for each in parts])
    newest = np.full(len(parts), -1)
    np.maximum.at(newest, place[order[again + 1]], place[order[again]])
    return newest


def distinct(part: Part) -> list[Part]:
    """The same part as several ones, in each of which a sample is once; without samples that are not kept."""
    indices, size = part.indices, len(part.indices)
    order = order_of(indices)
    begins = np.concatenate([[True], np.diff(indices[order]) != 0])
    # How often each sample was in the part before.
    number = np.empty(size, np.int64)
    number[order] = np.arange(size) - np.maximum.accumulate(np.where(begins, np.arange(size), 0))
    is_kept = indices >= 0
    if not is_kept.any():
        return []
    most = int(number[is_kept].max())
    if not most and is_kept.all():
        return [part]
    return [part.only(is_kept & (number == time), is_last=time == most) for time in range(most + 1)]


def _predictions(parts: list[Part]) -> tuple[Ints, NDArray[np.float32]] | None:
    """int64[M] and float32[3 P, M]: the samples that came with predictions, and what they say."""
    known = [each for each in parts if each.predictions is not None]
    if not known:
        return None
    said = joined([each.predictions for each in known if each.predictions is not None])
    return np.concatenate([each.indices for each in known]), said
