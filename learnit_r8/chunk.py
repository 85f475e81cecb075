"""A chunk: batches planned together, what was reported of them, and the one write that the table learns it by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .table import EXACT, SampleTable

UNDRAWN, OUT, REPORTED, SETTLED, WAITING, OUT_AGAIN = range(6)
"""States of a batch: OUT with the user; REPORTED and not yet in the table; SETTLED: in the table, refused or given
up; WAITING: abandoned once, to be drawn again; OUT_AGAIN: with the user for the second time."""


class Chunk:
    """Some batches that were planned together.

    Args:
        members: int64[M], distinct samples in drawing order.
        table: What is known of the samples; its batch size cuts the chunk into batches.
        sizes: int64, samples of each batch, their sum M.
        expected: Mean estimate of each batch when it was planned, for `SampleTable.with_trend`.
        pass_number: The pass it belongs to, or -1 for batches outside any pass.
        fill: int64[F], samples that only fill up the last batch and are not learned from.
        weights: float32[M], what to multiply each sample's loss by, or None.
        records: The members' records, as long as nobody else can change them; spares `learn` a second look.

    Attributes:
        handed: int64[M + F], what the user gets views of, and may write into; ``members`` is kept apart.
        states: One of the states above for each batch.
        drawn: Batches handed out so far.
        unsettled: Batches neither settled nor reported.
    """

    __slots__ = (
        "_batch_size", "_means", "_parts", "_records", "_sizes", "_table", "_trend", "_views", "drawn", "expected", "handed", "members",
        "pass_number", "states", "unsettled", "weights",
    )  # fmt: skip

    def __init__(
        self,
        members: NDArray[np.int64],
        table: SampleTable,
        *,
        sizes: NDArray[np.int64],
        expected: list[float],
        pass_number: int,
        fill: NDArray[np.int64] | None = None,
        weights: NDArray[np.float32] | None = None,
        records: NDArray[Any] | None = None,
    ) -> None:
        self.members = members
        self.handed = members.copy() if fill is None else np.concatenate([members, fill])
        self.expected = expected
        self.pass_number = pass_number
        self.weights = weights
        self.states = bytearray(len(expected))
        self.drawn = 0
        self.unsettled = len(expected)
        self._table = table
        self._records = records
        full = len(self.handed) // table.batch_size * table.batch_size
        self._views = list(self.handed[:full].reshape(-1, table.batch_size))
        if full < len(self.handed):
            self._views.append(self.handed[full:])
        self._batch_size = table.batch_size
        self._sizes = sizes
        self._parts = 0
        self._means: NDArray[np.float64] | None = None
        self._trend = np.zeros(len(expected))

    def draw(self) -> Batch:
        """The next undrawn batch; there must be one."""
        slot = self.drawn
        self.drawn = slot + 1
        self.states[slot] = OUT
        # The constructor of a named tuple is a Python function; this is not.
        return tuple.__new__(Batch, (self, slot, self._views[slot]))

    def batch(self, slot: int) -> Batch:
        """The batch at a place of the chunk."""
        return Batch(self, slot, self._views[slot])

    def weights_of(self, slot: int) -> NDArray[np.float32] | None:
        """float32[B], weights of one batch, or None."""
        start = slot * self._batch_size
        return None if self.weights is None else self.weights[start : start + self._batch_size]

    def report(self, slot: int, means: float | NDArray[np.float64], trend: float) -> None:
        """Keep a loss until `learn`: a float, or float64[P] for the consecutive parts of the batch."""
        reports = self._means
        if reports is None:
            reports = self._make_room()
        if isinstance(means, float):
            reports[slot] = means
        else:
            start = slot * self._parts
            room = reports[start : start + self._parts]
            room[:] = means[: len(room)]
        self._trend[slot] = trend
        self.states[slot] = REPORTED
        self.unsettled -= 1

    def _make_room(self) -> NDArray[np.float64]:
        """The array of reports: as many a batch as there are parts in a full one, none missing but at its end."""
        self._parts = -(-self._batch_size // (self._table.part_size or self._batch_size))
        self._means = np.full(len(self._part_sizes()), np.nan)
        return self._means

    def _part_sizes(self) -> NDArray[np.int64]:
        """int64[P], samples in each part that is reported, over the whole chunk."""
        size, part = self._batch_size, self._table.part_size or self._batch_size
        if part >= size:
            return self._sizes
        starts = np.add.outer(np.arange(0, len(self.members), size), np.arange(0, size, part)).ravel()
        starts = starts[starts < len(self.members)]
        return np.diff(starts, append=len(self.members))

    def settle(self, slot: int) -> None:
        """Close a batch that was drawn and will not be learned from."""
        self.states[slot] = SETTLED
        self.unsettled -= 1

    def drop_undrawn(self) -> None:
        """Close the batches that were not drawn."""
        for slot in range(self.drawn, len(self.states)):
            self.settle(slot)
        self.drawn = len(self.states)

    def batches_out(self) -> list[Batch]:
        """The batches that are with the user."""
        return [self.batch(slot) for slot, state in enumerate(self.states) if state in (OUT, OUT_AGAIN)]

    def forget_records(self) -> None:
        """Read the records again in `learn`, because somebody else may change them before."""
        self._records = None

    def give_up(self) -> None:
        """Close every batch, so that nothing of the chunk can be reported any more."""
        self.states[:] = bytes([SETTLED]) * len(self.states)
        self.unsettled = 0

    def learn(self) -> None:
        """Write the reports that the table does not know yet to it."""
        if self._means is None:
            return
        states = np.frombuffer(self.states, np.uint8)
        reported = states == REPORTED
        if not reported.any():
            return
        exact = self._table.part_size == EXACT
        sizes = None if exact else self._part_sizes()
        members, means, trend = self.members, self._means, np.repeat(self._trend, self._parts)[: len(self._means)]
        if not reported.all():
            of_sample = np.repeat(reported, self._batch_size)[: len(members)]
            of_part = np.repeat(reported, self._parts)[: len(means)]
            members, means, trend = members[of_sample], means[of_part], trend[of_part]
            sizes = None if sizes is None else sizes[of_part]
        records = self._records if reported.all() else None
        self._table.learn(members, means, sizes, trend, records)
        self._records = None
        states[reported] = SETTLED

    def state_dict(self) -> dict[str, Any]:
        """Everything but the table."""
        return {
            "handed": self.handed.copy(),
            "members": self.members.copy(),
            "weights": None if self.weights is None else self.weights.copy(),
            "sizes": self._sizes.copy(),
            "expected": np.array(self.expected),
            "pass_number": self.pass_number,
            "states": np.frombuffer(self.states, np.uint8).copy(),
            "drawn": self.drawn,
            "means": None if self._means is None else self._means.copy(),
            "trend": self._trend.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], table: SampleTable) -> Chunk:
        """The chunk that `state_dict` was taken of."""
        members, handed = (np.array(state[name], np.int64) for name in ("members", "handed"))
        chunk = cls(
            members,
            table,
            fill=handed[len(members) :],
            sizes=np.array(state["sizes"], np.int64),
            expected=[float(value) for value in state["expected"]],
            pass_number=int(state["pass_number"]),
            weights=None if state["weights"] is None else np.array(state["weights"], np.float32),
        )
        chunk.handed[:] = handed
        chunk.states = bytearray(np.asarray(state["states"], np.uint8).tobytes())
        chunk.drawn = int(state["drawn"])
        chunk.unsettled = sum(state not in (REPORTED, SETTLED) for state in chunk.states)
        if state["means"] is not None:
            chunk._make_room()[:] = state["means"]
        chunk._trend[:] = state["trend"]
        return chunk


class Batch(NamedTuple):
    """A drawn batch: its chunk, its place in it, and its samples, int64[B]."""

    chunk: Chunk
    slot: int
    indices: NDArray[np.int64]

    @property
    def is_out(self) -> bool:
        """Whether it is with the user: drawn, and neither reported nor given up."""
        return self.chunk.states[self.slot] in (OUT, OUT_AGAIN)

    @property
    def expected(self) -> float:
        """What the table expected of it when it was planned, for `SampleTable.with_trend`."""
        return self.chunk.expected[self.slot]
