"""The plan of a run whose batches come from the user's loader: it counts them, and draws none.

It has what the engine uses of a `Plan`. A batch is a chunk of its own, so that a report finds its place as it does in a
chunk that was planned.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..policies.radix import order_of
from ..table.labels.predictions import joined
from ..table.losses import EXACT, WHOLE_BATCH, Reading, read_mean, read_rows
from ..table.names import Members
from .chunk import CLOSED, OPEN, REPORTED, Batch

if TYPE_CHECKING:
    from ..table.table import SampleTable


Ints = NDArray[np.int64]


class _Held(NamedTuple):
    """A batch that is out, or whose report the table has not learned: a `LoaderBatch` without what the loader gave."""

    members: Members
    states: bytearray
    reports: list[Any]
    trends: list[float]
    predictions: list[Any]


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

    def add(self, members: Members, batch: LoaderBatch) -> None:
        """Hold a batch, which is reported later or given up."""
        held = members, batch.states, batch.reports, batch.trends, batch.predictions
        self._held.append(_new_tuple(_Held, held))
        self.num_samples += len(members[0])

    def hand_over(self) -> None:
        """Let the table learn all reports so far."""
        if not self._held:
            return
        reported = [each for each in self._held if each.states[0] == REPORTED]
        if reported and not self._has_learned_plain(reported):
            kind = self._table.storage.part_size
            for some in rounds([part for each in reported if (part := Part.of(each, kind)) is not None]):
                self._learn(some, is_exact=kind == EXACT)
            # Those from which nothing could be learned, too.
            _close(reported)
        # Last: if this is interrupted, those not learned are learned the next time.
        self._held = [each for each in self._held if each.states[0] == OPEN]
        self.num_samples = sum(len(each.members.indices) for each in self._held)

    def _has_learned_plain(self, reported: list[_Held]) -> bool:
        """Learn from batches as nearly all are: a loss for each sample, none of which comes again. False if not."""
        if self._table.storage.part_size != EXACT:
            return False
        members, _, reports, trends, predictions = zip(*reported, strict=True)
        indices, several = zip(*members, strict=True)
        means = list(itertools.chain.from_iterable(reports))
        if any(predictions) or set(map(type, several)) != {type(None)} or set(map(type, means)) != {np.ndarray}:
            return False
        joined = np.concatenate(indices)
        ordered = joined.take(order_of(joined))
        if not len(joined) or ordered[0] < 0 or not (ordered[1:] != ordered[:-1]).all():
            return False
        done = functools.partial(_close, reported)
        before = np.repeat(list(itertools.chain.from_iterable(trends)), list(map(len, indices)))
        self._table.learner.learn(joined, np.concatenate(means), None, before, done=done)
        return True

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


def _close(held: list[_Held]) -> None:
    for each in held:
        each.states[0] = CLOSED


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
        return _new_tuple(cls, (indices, means, sizes, held.trends[0], held.states, rows, True))

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


UNKNOWN_LENGTH = sys.maxsize
"""Steps of a pass that only ends where its loader does."""

MOST_HELD = 2**13
"""Samples whose reports are held back at most, unless they are more in one batch: some .5 ms of learning."""


class Size(NamedTuple):
    """The size of a batch.

    Attributes:
        samples: Samples in it; 1 where its size is not known.
        tokens: Tokens in it, or 0.
    """

    samples: int = 1
    tokens: int = 0


class LoaderBatch:
    """A batch of the user's, in the form of a chunk with one batch.

    Args:
        table: The table of the run.
        pass_number: Its pass; -1 for one that is handed out again.
        item: What the loader gave, to be handed out again; None if it is not kept.
        size: Its size.
        members: Its samples; None if it does not say which.

    Attributes:
        states, drawn, reports, trends, rates: As of a `Chunk`, of one batch.
        item: As given.
        size: As given.
        members: As given.
        predictions: float32[3 P, M], what was reported with the loss; empty without.
    """

    __slots__ = (
        "item", "members", "pass_number", "predictions", "rates", "reports", "size", "states", "table", "trends",
    )  # fmt: skip

    drawn = 1
    expected = (math.nan,)
    typical = math.nan
    sweep = 0
    weights = None
    is_probe = is_extra = False

    def __init__(
        self, table: SampleTable, pass_number: int, item: Any, size: Size, members: Members | None = None
    ) -> None:
        self.table, self.pass_number, self.item, self.size, self.members = table, pass_number, item, size, members
        self.states = bytearray(1)
        self.predictions: list[NDArray[np.float32]] = []
        self.reports, self.trends, self.rates = [0.0], [0.0], [0.0]

    def read(self, loss: Any) -> Reading:
        """Turn a reported loss into numbers; its kind is that of the table, once that has one."""
        storage, members = self.table.storage, self.members
        kind = storage.part_size
        if members is None:
            reading = read_mean(loss)
        else:
            indices, counts = members
            if kind == WHOLE_BATCH and not storage.num_seen:
                # That of batches without samples.
                kind = None
            reading = read_rows(loss, len(indices if counts is None else counts), counts, kind)
        return reading if kind is None or kind == reading[2] else reading._replace(part_size=kind)

    def close(self, slot: int) -> None:
        """Close it."""
        self.states[slot] = CLOSED

    def witness_of(self, indices: NDArray[np.int64]) -> Any:
        """What `LoaderPlan.draw_again` takes: the item; None if it is not kept."""
        return self.item

    def shares_of(self, slot: int, count: int) -> tuple[float, ...]:
        """Unknown."""
        return ()


class WitnessBatch(LoaderBatch):
    """A batch that is handed out again, to test weights with it."""

    __slots__ = ("is_extra",)

    is_probe = True
    sweep = -1


class _NoSweeps(NamedTuple):
    num_sweeps: int = 0


class UserBatches(NamedTuple):
    """Stands for the policy, which is the user's own."""

    name: str = "your own batches"
    needs_exact: bool = False


class LoaderPlan:
    """Counts the batches that a run takes from the user's loader, and passes their reports to the table.

    Args:
        table: A table that grows.
        seed: >= 0; nothing is drawn with it.

    Attributes:
        steps_per_pass: More than there will ever be, as a pass ends where its loader does.
        num_samples: Samples in the batches so far.
        taken: Items that the loader has given in this pass, but for the one in hand.
        left_out: Batches of this pass that the loader's sampler has drawn and that held nothing but samples in
            quarantine.
        abandoned: Batches that were not reported.
    """

    last_batch = "short"
    chunk = None
    returned = ()
    outlook = None

    def __init__(self, table: SampleTable, *, seed: int = 0) -> None:
        self.table, self.seed = table, seed
        self.policy = UserBatches()
        self.steps_per_pass = UNKNOWN_LENGTH
        self.num_samples = self.taken = self.left_out = self.abandoned = 0
        self._planner = _NoSweeps()
        self._held = HeldReports(table)
        table.learner.hold_back(self)

    @property
    def is_full(self) -> bool:
        """Whether the reports that are held back are many enough to be learned."""
        return self._held.num_samples >= MOST_HELD

    def samples_in(self, steps: int) -> int:
        """Samples in the batches so far, which are those of ``steps`` steps."""
        return self.num_samples

    def take(self, item: Any, size: Size, pass_number: int, *, members: Members | None = None) -> Batch:
        """Take a batch that the loader has given.

        Args:
            item: What is kept of it as long as a backup may want it; None for nothing.
            size: Its size.
            pass_number: The pass.
            members: Its samples, or None.
        """
        self.num_samples += size.samples
        batch = LoaderBatch(self.table, pass_number, item, size, members)
        if members is None:
            return self._as_batch(batch)
        self._held.add(members, batch)
        return _new_tuple(Batch, (batch, 0, members[0]))

    def tell_members(self, chunk: LoaderBatch, members: Members) -> None:
        """Note the samples of a batch that was taken without."""
        chunk.members = members
        self._held.add(members, chunk)

    def draw_again(self, item: Any) -> Batch:
        """Hand out a batch once more, outside any pass."""
        return self._as_batch(WitnessBatch(self.table, -1, item, Size()))

    @staticmethod
    def _as_batch(chunk: LoaderBatch) -> Batch:
        count = chunk.size.samples
        indices = _NOBODY if count <= len(_NOBODY) else np.full(count, -1)
        return Batch(chunk, 0, indices[:count])  # type: ignore[arg-type]

    def report(self, batch: Batch, means: Any, trend: float, predictions: Any = None) -> None:
        """Keep the report of a batch, from which the table learns later."""
        chunk: Any = batch.chunk
        if chunk.members is None:
            chunk.close(0)
            return
        chunk.reports[0], chunk.trends[0], chunk.states[0] = means, trend, REPORTED
        chunk.predictions[:] = [] if predictions is None else [predictions.rows]
        if predictions is not None and predictions.num_places > 1:
            # Those of many batches would take too much memory.
            self.hand_over()

    def close(self, batch: Batch) -> None:
        """Close a batch without learning from it; what came before is learned, as its samples may be suspected."""
        batch.chunk.close(batch.slot)
        self.hand_over()

    def abandon(self, batch: Batch, *, may_come_again: bool = False) -> bool:
        """Close a batch that will not be reported; it does not come again, so returns False."""
        self.abandoned += 1
        self.num_samples -= batch.chunk.size.samples  # type: ignore[attr-defined]
        self.close(batch)
        return False

    def can_put_back(self, batch: Batch) -> bool:
        """Never, as the loader says what comes next."""
        return False

    def check_again(self) -> None:
        """Do nothing: no batch is planned."""

    def use_offsets(self, trend: float) -> None:
        """Do nothing: no loss is predicted."""

    def hand_over(self) -> None:
        """Let the table learn all reports so far."""
        self._held.hand_over()

    def position(self) -> dict[str, Any]:
        """How far the run is; the loader's own state is kept by the `Feed`."""
        return {
            "samples": self.num_samples, "taken": self.taken, "left_out": self.left_out, "abandoned": self.abandoned,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `position` returned."""
        self.num_samples, self.taken, self.abandoned = state["samples"], state["taken"], state["abandoned"]
        self.left_out = state["left_out"]
        self._held.clear()


_NOBODY = np.full(4096, -1)
_NOBODY.flags.writeable = False
_new_tuple = tuple.__new__
