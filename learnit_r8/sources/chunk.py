"""A chunk: batches planned together, whose reports the table learns with a single write."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..table.labels.predictions import joined
from ..table.losses import EXACT, Reading
from ..table.names import Members
from ..table.radix import keys_of, order_of

if TYPE_CHECKING:
    from ..table.storage import SampleStorage
    from ..table.table import SampleTable


OPEN, REPORTED, CLOSED, WAITING, OUT_AGAIN = range(5)
"""States of a batch. OPEN: not drawn, or drawn and not reported. REPORTED: not in the table yet. CLOSED: in the table,
refused or given up. WAITING: abandoned once, to be drawn again. OUT_AGAIN: drawn for the second time."""

QUARTERS = 4


class Planned(NamedTuple):
    """The losses that a chunk was planned with, from which viewers see what its batches are made of.

    Attributes:
        pool: float32[P], estimates of all samples that the policy chose from; NaN for unseen ones.
        loss: float32[M], estimates of the chosen samples.
        order: int64[M], their drawing order.
    """

    pool: NDArray[np.float32]
    loss: NDArray[np.float32]
    order: NDArray[np.int64]

    def shares(self, first: int, last: int) -> tuple[float, ...]:
        """Share of the samples drawn from ``first`` to ``last`` in each quarter of the pool; empty if one is unseen.

        Equal losses across the bound of two quarters belong to both in part.
        """
        values, known = self.loss[self.order[first:last]], self.pool[~np.isnan(self.pool)]
        known = known[order_of(keys_of(known))]
        if len(known) < QUARTERS or not len(values) or np.isnan(values).any():
            return ()
        low, high = (np.searchsorted(known, values, side=side) / len(known) for side in ("left", "right"))
        # A value that the pool lacks has a place and no width.
        low, high = np.minimum(low, 1 - 1e-9)[:, None], np.maximum(high, low + 1e-9)[:, None]
        bounds = np.arange(QUARTERS) / QUARTERS
        inside = np.clip(np.minimum(high, bounds + 1 / QUARTERS) - np.maximum(low, bounds), 0, None)
        shares: list[float] = (inside / (high - low)).mean(axis=0).tolist()
        return tuple(float(f"{share:.5g}") for share in shares)


class Chunk:
    """Batches that were planned together.

    Args:
        members: int64[M], distinct samples in drawing order.
        table: The sample table; its batch size divides the chunk into batches.
        sizes: int64, samples of each batch, their sum M.
        expected: Mean estimate of each batch when it was planned, for `LossLearner.with_trend`.
        typical: Mean estimate of all the samples that the batches were chosen from, for `LossLearner.with_trend`.
        pass_number: The pass it belongs to; -1 outside any pass.
        sweep: Number of its sweep, counted over the run; -1 outside any pass. Chunks of one sweep share no sample.
        fill: F, number of first samples that also fill up the last batch; they are learned from once.
        weights: float32[M], later float32[M + F], factors for the samples' losses, or None.
        planned: The losses it was planned with; None if unknown.

    Attributes:
        handed: int64[M + F], a copy of the members of which users get views that they may change.
        views: int64[B] of ``handed`` for each batch.
        table: The table that learns its reports.
        states: One of the states above for each batch.
        reports: For each REPORTED batch, a float or the float64[P] of its consecutive parts.
        predictions: By position, float32[3 P, B] of those REPORTED batches that came with predictions.
        rates: For each drawn batch, its learning rate; a batch drawn again after a resume has the same.
        trends: For each REPORTED batch, the trend of the losses before it.
        drawn: Batches drawn so far.
        planned: As given.
        is_probe: Whether its batch is drawn again to test weights, so that it is no step.
        is_extra: Whether no batch is left out for it.
        is_late: Whether reports of it come when others of the same samples may wait for the table already.
    """

    is_probe = is_extra = is_late = False
    tokens = 0

    def __init__(
        self, members: NDArray[np.int64], table: SampleTable, *, sizes: NDArray[np.int64], expected: list[float],
        typical: float = math.nan, pass_number: int, sweep: int, fill: int = 0,
        weights: NDArray[np.float32] | None = None, planned: Planned | None = None,
    ) -> None:  # fmt: skip
        self.members = members
        # The last batch is filled up with the first samples, repeatedly if necessary.
        self.handed = np.resize(members, len(members) + fill)
        self.expected = expected
        self.typical = typical
        self.pass_number = pass_number
        self.sweep = sweep
        self.weights = None if weights is None else np.resize(weights, len(self.handed))
        self.states = bytearray(len(expected))
        self.drawn = 0
        self.planned = planned
        self.table = table
        self._sizes = sizes
        # Where each batch begins; what fills up the last one is at the end of it.
        self._starts: list[int] = (np.cumsum(sizes) - sizes).tolist()
        ends = [*self._starts[1:], len(self.handed)]
        self.views = [self.handed[start:end] for start, end in zip(self._starts, ends, strict=False)]
        self.predictions: dict[int, NDArray[np.float32]] = {}
        # Lists: storing a float in a numpy array takes twice as long.
        self.reports: list[Any] = [0.0] * len(expected)
        self.trends, self.rates = [0.0] * len(expected), [0.0] * len(expected)

    def batch(self, slot: int) -> Batch:
        """The batch at a position of the chunk."""
        return Batch(self, slot, self.views[slot])

    def restore_view(self, slot: int) -> None:
        """Undo any changes by the user to a batch's indices, before it is drawn again."""
        start, view = self._starts[slot], self.views[slot]
        view[:] = np.resize(self.members, len(self.handed))[start : start + len(view)]

    def witness_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """What `PlannedBatches.again` takes: a copy of the indices of a batch, which the user may change."""
        witness: NDArray[np.int64] = indices.copy()
        return witness

    def weights_of(self, slot: int) -> NDArray[np.float32] | None:
        """float32[B], weights of one batch, or None."""
        start = self._starts[slot]
        return None if self.weights is None else self.weights[start : start + len(self.views[slot])]

    def shares_of(self, slot: int, count: int) -> tuple[float, ...]:
        """Share of a batch of ``count`` samples in each quarter that it was planned with; empty if unknown."""
        first = self._starts[slot]
        return () if self.planned is None else self.planned.shares(first, min(first + count, len(self.members)))

    def close(self, slot: int) -> None:
        """Close a batch that was drawn and will not be learned from."""
        self.states[slot] = CLOSED

    def close_from(self, slot: int) -> None:
        """Close a batch and all after it, so that none of them can be drawn or reported."""
        self.states[slot:] = bytes([CLOSED]) * (len(self.states) - slot)

    @property
    def is_closed(self) -> bool:
        """Whether every batch is reported or closed."""
        return self.states.count(REPORTED) + self.states.count(CLOSED) == len(self.states)

    def learn(self) -> None:
        """Let the table learn all reports that it has not learned yet."""
        states = np.frombuffer(self.states, np.uint8)
        reported = states == REPORTED
        if not reported.any():
            return
        members, sizes = self.members[np.repeat(reported, self._sizes)], self._sizes[reported]
        reports, trends = list(itertools.compress(self.reports, reported)), np.array(self.trends)[reported]
        if self.weights is not None and (self.weights != 1).any():
            self.table.storage.note_weights()
        # None where each part is one sample.
        part_sizes: NDArray[np.int64] | None = None
        part_size = self.table.storage.part_size
        if self.table.storage.batch_size == 1 or not part_size:
            means = np.array(reports)
            part_sizes = sizes if self.table.storage.batch_size > 1 else None
        else:
            counts = -(-sizes // part_size)
            # The report of a filled-up batch also covers the filling, which comes last.
            means = np.concatenate([parts[:count] for parts, count in zip(reports, counts.tolist(), strict=True)])
            trends = np.repeat(trends, counts)
            if part_size != EXACT:
                part_sizes = np.full(len(means), part_size)
                part_sizes[np.cumsum(counts) - 1] = sizes - (counts - 1) * part_size
        places = np.flatnonzero(reported)
        self.table.learner.learn(
            members,
            means,
            part_sizes,
            trends,
            predictions=joined(self._predictions(places.tolist())) if self.predictions else None,
            done=lambda: states.__setitem__(places, CLOSED),
        )
        self.predictions.clear()

    def _predictions(self, places: list[int]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The samples of each of these batches that came with predictions, and what they say; see `joined`."""
        for place in filter(self.predictions.__contains__, places):
            start, size = self._starts[place], int(self._sizes[place])
            # What only fills a batch up comes last.
            yield self.members[start : start + size], self.predictions[place][:, :size]

    def state_dict(self) -> dict[str, Any]:
        """Everything except the table, which has learned all reports or is about to."""
        states = np.frombuffer(self.states, np.uint8)
        return {
            "handed": self.handed.copy(),
            "members": self.members.copy(),
            "weights": None if self.weights is None else self.weights.copy(),
            "sizes": self._sizes.copy(),
            "expected": np.array(self.expected),
            "typical": self.typical,
            "pass_number": self.pass_number,
            "sweep": self.sweep,
            "states": np.where(states == REPORTED, np.uint8(CLOSED), states),
            "drawn": self.drawn,
            "rates": np.array(self.rates),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], table: SampleTable) -> Chunk:
        """Make a chunk from what `state_dict` returned."""
        members, handed = (np.array(state[name], np.int64) for name in ("members", "handed"))
        chunk = cls(
            members,
            table,
            fill=len(handed) - len(members),
            sizes=np.array(state["sizes"], np.int64),
            expected=[float(value) for value in state["expected"]],
            typical=state["typical"],
            pass_number=int(state["pass_number"]),
            sweep=int(state["sweep"]),
            weights=None if state["weights"] is None else np.array(state["weights"], np.float32)[: len(members)],
        )
        chunk.handed[:] = handed
        chunk.states = bytearray(np.asarray(state["states"], np.uint8).tobytes())
        chunk.drawn = int(state["drawn"])
        chunk.rates = np.asarray(state["rates"], np.float64).tolist()
        return chunk


def with_predictions(reading: Reading, predictions: Any, storage: SampleStorage) -> Reading:
    """A loss and what was reported with it, where there is a table to learn that."""
    if not storage.num_samples:
        return reading
    rows = storage.evidence.checked(predictions, np.size(reading.means), reading.part_size)
    return reading._replace(predictions=rows)


class Size(NamedTuple):
    """The size of a batch.

    Attributes:
        samples: Samples in it; 1 where its size is not known.
        tokens: Tokens in it, or 0.
    """

    samples: int = 1
    tokens: int = 0


@dataclass(eq=False, slots=True)
class FollowedChunk:
    """A chunk of one batch, which is the user's own.

    Attributes:
        table: The table of the run.
        pass_number: Its pass; -1 for one that is handed out again.
        item: What the loader gave, to be handed out again; None if it is not kept.
        size: Samples in it; 1 where their number is not known.
        tokens: Tokens in it, or 0.
        indices: int64[B], its samples as it was taken; -1 where they are not known.
        members: Its samples; None if it does not say which.
        is_probe: Whether it is handed out again, to test weights with it.
        is_late, sweep: As of a `Chunk`: true and -1 where it is handed out again, else false and 0, as all others are
            learned in their order.
        given: What the loader gave, until it is reported; None where that is not known.
        is_extra, states, drawn, reports, predictions, trends, rates: As of a `Chunk`, of one batch.
    """

    table: SampleTable
    pass_number: int
    item: Any
    size: int
    tokens: int
    indices: NDArray[np.int64]
    members: Members | None = None
    is_probe: bool = False
    is_late: bool = False
    sweep: int = 0
    is_extra: bool = False
    given: Any = None
    states: bytearray = field(default_factory=functools.partial(bytearray, 1))
    predictions: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    reports: list[Any] = field(default_factory=functools.partial(list, (0.0,)))
    trends: list[float] = field(default_factory=functools.partial(list, (0.0,)))
    rates: list[float] = field(default_factory=functools.partial(list, (0.0,)))

    drawn: ClassVar[int] = 1
    expected: ClassVar[tuple[float]] = (math.nan,)
    typical: ClassVar[float] = math.nan
    weights: ClassVar[None] = None

    def close(self, slot: int) -> None:
        """Close it."""
        self.states[slot], self.given = CLOSED, None

    def witness_of(self, indices: NDArray[np.int64]) -> Any:
        """What `FollowedBatches.again` takes: the item; None if it is not kept."""
        return self.item

    def restore_view(self, slot: int) -> None:
        """Do nothing: its indices are not the user's to change."""

    def shares_of(self, slot: int, count: int) -> tuple[float, ...]:
        """Unknown."""
        return ()


class Batch(NamedTuple):
    """A drawn batch: its chunk, its position in it, and its samples, int64[B]."""

    chunk: Chunk | FollowedChunk
    slot: int
    indices: NDArray[np.int64]
