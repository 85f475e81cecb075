"""The user's own batches: where a run is in the loader they come from, how it comes there again, and their reports.

What batches say of their samples is held until the table learns from many of them together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...sources.chunk import CLOSED, OPEN, REPORTED, Batch, FollowedChunk, with_predictions
from ...sources.random_generators import hold_random_state, set_random_state, state_of
from ...sources.source import Source
from ...table.labels.predictions import PredictionRows, joined
from ...table.losses import EXACT, WHOLE_BATCH, Reading, read_mean, read_rows
from ...table.names import Members
from ...table.radix import order_of
from ...table.table import SampleTable
from . import replay
from .samples import BatchSamples

if TYPE_CHECKING:
    from ...events.bus import Announcer
    from ...recovery.agreement import Agreement
    from ...sources.ticket import Ticket
    from ..pace import Pace
    from ..settings import OwnBatches

Ints = NDArray[np.int64]

UNKNOWN_LENGTH = sys.maxsize
"""Steps of a pass that only ends where its loader does."""

MOST_HELD = 2**13
"""Samples whose reports are held back at most, unless they are more in one batch: some .5 ms of learning."""


class UserBatches(NamedTuple):
    """Stands for the policy, which is the user's own."""

    name: str = "your own batches"
    needs_exact: bool = False
    weighs: bool = False


class FollowedBatches(Source):
    """The source of batches that come from the user's loader, which says what comes next; see `Source`.

    Each batch is a chunk of its own, so that a report finds its place as it does in a chunk that was planned.

    Args:
        table: A table that grows.
        pace: The position of the run.
        settings: How the loader is treated.
        announcer: Tells of what cannot be done.
        agreement: Decides together with other ranks, if there are any.
        seed: >= 0; nothing is drawn with it.

    Attributes:
        num_samples: Samples in the batches so far.
        taken: Items that the loader has given in this pass, but for the one in hand.
        left_out: Batches of this pass that the loader's sampler has drawn and that held nothing but samples in
            quarantine.
        offered: The batch that is handed out next, and whether it is of a loader; None once it is.
        batches: The iterator over the loader.
        open: The batch in hand; None once it is reported.
        iteration: The iteration over the loader that is under way; None without one.
        samples: Finds out which samples the batches of this iteration hold.
        has_begun: Whether an iteration has.
        first_turn: Steps and probes reported as it began.
        length: Batches that the loader has, as far as it says; infinite where nobody knows.
        held: Batches with known samples that are out, or from whose reports the table is still to learn.
        taken_before: Items that the loader had given by then in this pass.
    """

    steps_per_pass = pass_number = UNKNOWN_LENGTH
    abandoned_text = (
        "the batch of step {step} was not reported with update_with_loss(); it counts as no step and does not come "
        "again."
    )

    def __init__(
        self, table: SampleTable, *, pace: Pace, settings: OwnBatches, announcer: Announcer, agreement: Agreement,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.table, self.seed, self.settings, self.policy = table, seed, settings, UserBatches()
        self._pace, self._announcer, self._agreement = pace, announcer, agreement
        self.num_samples = self.taken = self.left_out = self.abandoned = 0
        self.held: list[FollowedChunk] = []
        self.offered: tuple[FollowedChunk, bool] | None = None
        self.samples = BatchSamples(table.storage, announcer, agreement)
        self.open: Ticket | None = None
        self.iteration: object = None
        self.has_begun = self._was_placed = self._looks_ahead = self._has_run_out = False
        self.first_turn = self.taken_before = 0
        self.length = math.inf
        self.batches: Iterator[Any] = iter(())
        # Batches that may not be reported yet.
        self._out: list[FollowedChunk] = []
        # The random generators before the loader gave the batch in hand, if it has fetched the next one already, which
        # was drawn from there.
        self._before: Any = None
        self._source: Any = None
        self._start: dict[str, Any] | None = None
        # Those before the user's code of this epoch, as `epochs` has yielded its number; None where it has not.
        self._head: Any = None
        # Loaders that began their workers in this pass.
        self._began: list[Any] = []
        self._resumed: Mapping[str, Any] | None = None
        table.learner.hold_back(self)

    @property
    def has_end(self) -> bool:
        """See `Source`; nothing is left out of a stream, which ends where it does, or after the last batch."""
        return self.length < math.inf and self.taken + self._pace.probes_in_epoch < self.length

    def facts(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "batch_size": 0, "steps_per_epoch": self._pace.budget.steps_per_pass or 0, "policy": self.policy.name,
            "grows": self.samples.is_known or bool(self.table.num_samples),
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """See `Source`."""
        return {**self.table.storage.identity(), "last_batch": "short"}

    def samples_in(self, steps: int) -> int:
        """Samples in the batches so far, which are those of ``steps`` steps."""
        return self.num_samples

    # Batches.

    def fetch(self, none: Any) -> Any:
        """The next item of the loader; ``none`` if it has none left."""
        if self._looks_ahead:
            self._before = hold_random_state()
        item = next(self.batches, none)
        self._has_run_out = item is none
        return item

    def skip(self, most: int) -> None:
        """Draw this many items of the loader at most, and drop them."""
        none = object()
        for _ in range(most):
            if self.fetch(none) is none:
                return

    def next(self, ahead: None = None) -> Batch:
        """Hand out the batch that was offered."""
        batch = self.next_at_hand(0)
        assert batch is not None
        return batch

    def next_at_hand(self, epoch: int) -> Batch | None:
        """See `Source`; the batch that was offered."""
        if self.offered is None:
            return None
        (chunk, is_of_loader), self.offered = self.offered, None
        self.num_samples += chunk.size
        if chunk.members is not None:
            self.held.append(chunk)
        if is_of_loader:
            self.taken += 1
            # The others that are reported are left out where they are counted.
            while self._out and self._out[0].states[0]:
                del self._out[0]
            self._out.append(chunk)
        return Batch(chunk, 0, chunk.indices)

    def again(self, witness: Any) -> Batch:
        """Hand out a batch once more, outside any pass."""
        chunk = FollowedChunk(self.table, -1, witness, 1, 0, np.full(1, -1), is_probe=True, is_late=True, sweep=-1)
        return Batch(chunk, 0, chunk.indices)

    def tell_members(self, chunk: FollowedChunk, members: Members) -> None:
        """Note the samples of a batch that was taken without."""
        chunk.members = members
        self.held.append(chunk)

    def read(self, chunk: FollowedChunk, slot: int, loss: Any, part_size: int | None, predictions: Any) -> Reading:
        """See `Source`; its kind is that of the table, once that has one."""
        storage, members = self.table.storage, chunk.members
        kind = storage.part_size
        if type(loss) is float:
            reading = Reading(loss, loss, WHOLE_BATCH, loss)
        elif members is None:
            reading = read_mean(loss)
        else:
            if kind == WHOLE_BATCH and not storage.num_seen:
                # That of batches without samples.
                kind = None
            reading = read_rows(loss, members.num_rows, members.counts, kind)
        if kind is not None and kind != reading.part_size:
            reading = reading._replace(part_size=kind)
        return reading if predictions is None else with_predictions(reading, predictions, storage)

    def report(
        self, chunk: FollowedChunk, slot: int, means: Any, trend: float, predictions: PredictionRows | None = None
    ) -> None:
        """Keep the report of a batch, from which the table learns later."""
        if chunk.members is None:
            chunk.close(0)
            return
        chunk.reports[0], chunk.trends[0], chunk.states[0] = means, trend, REPORTED
        # What it was made of is in the backup that wants it, and must not wait with its report.
        chunk.item = chunk.given = None
        if predictions is not None:
            chunk.predictions[0] = predictions.rows
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
        self.num_samples -= batch.chunk.size  # type: ignore[union-attr]
        self.close(batch)
        return False

    def hand_back(self, batch: Batch) -> None:
        """Close it, as the loader says what comes next."""
        self.abandon(batch)

    def hand_over(self) -> None:
        """Let the table learn all reports so far."""
        if not self.held:
            return
        reported = [each for each in self.held if each.states[0] == REPORTED]
        kind = self.table.storage.part_size
        for some in rounds([part for each in reported if (part := Part.of(each, kind)) is not None]):
            self._learn(some, is_exact=kind == EXACT)
        for each in reported:
            # Those from which nothing could be learned, too.
            each.states[0] = CLOSED
        # Last: if this is interrupted, those not learned are learned the next time.
        self.held = [each for each in self.held if each.states[0] == OPEN]

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

        said = joined((each.indices, each.predictions) for each in parts if each.predictions is not None)
        self.table.learner.learn(indices, means, sizes, trend, predictions=said, done=done)

    # The place in the loader.

    @property
    def is_resumed(self) -> bool:
        """Whether a saved place waits for the next iteration."""
        return self._resumed is not None

    def go_on(self) -> bool:
        """Have the next iteration go on in this pass, as that of a resumed run does.

        Returns:
            Whether that is needed: an iterator does so by itself.
        """
        if replay.goes_on(self._source):
            return False
        self._resumed = self.state()
        self.taken, self._out = self.num_taken, []
        return True

    def take_resumed(self) -> Mapping[str, Any] | None:
        """The saved place that waits, which is no longer waiting then; None without one."""
        resumed, self._resumed = self._resumed, None
        return resumed

    def note_head(self) -> None:
        """Note where the random generators are as the user's code of an epoch begins, before its batches; in an epoch
        that goes on they are set to where they were: that code runs again.
        """
        if self._resumed is None:
            self._head = hold_random_state()
        elif not self._pace.has_ended:
            self._head = self._resumed.get("head")
            if self._head is not None:
                set_random_state(self._head)

    def begin_alone(self, *, is_within: bool) -> None:
        """Note where the random generators are before an epoch of a loader that a trainer asks by itself.

        Args:
            is_within: Whether a saved run was within that epoch: then they are set to where they were before it.
        """
        if is_within and self._resumed is not None:
            self._start = self._resumed["start"]
            replay.set_generators(None, self._start)
        else:
            self._start = replay.read_start(None)

    def resume_alone(self) -> None:
        """Set the random generators of a saved run whose loader is not forwarded."""
        resumed = self.take_resumed()
        if resumed is not None:
            replay.set_generators(None, resumed["now"])

    @property
    def num_taken(self) -> int:
        """Items that the loader has given in this pass and that were trained on or passed over."""
        self._out = [batch for batch in self._out if not batch.states[0]]
        return self.taken - len(self._out)

    def begin(self, source: Any) -> None:
        """Begin a run through a loader, or go on with one that is an iterator."""
        if self._was_placed:
            replay.forget_place(source)
            self._was_placed = False
        self.first_turn, self.length = self._pace.turns, self._length_of(source)
        # An iterator goes on, but for one that starts over by itself once it has run out.
        if not (replay.is_iterator(source) and source is self._source) or self._has_run_out:
            self.taken = self.left_out = 0
            self._start, self._began = replay.read_start(source), replay.without_workers(source)
        self._source, self._out, self.taken_before = source, [], self.taken
        self.batches = self.samples.open(source)
        self._looks_ahead, self._before, self.has_begun = replay.looks_ahead(source), None, True

    def _length_of(self, source: Any) -> float:
        try:
            return len(source)
        except TypeError:
            # A DataLoader over a stream has the method, which raises.
            return self._pace.budget.steps_per_pass or math.inf

    def resume(self, source: Any) -> None:
        """Go on from the saved place, which may be the end of a pass."""
        pace, resumed = self._pace, self.take_resumed()
        assert resumed is not None
        self._source, self._start, self._was_placed = source, resumed["start"], True
        if pace.passes or pace.has_ended:
            replay.begin_as_once(source)
        else:
            # The first pass, which goes on in this process, began with the random number that this takes.
            for each in self._began:
                each._iterator = None
        self.first_turn, self.length = pace.turns - (self.taken > 0), self._length_of(source)
        self.batches = iter(())
        if not pace.has_ended:
            way, count = self.settings.resume_data, self.taken + self.left_out
            self.batches = replay.resume(self._announcer, source, resumed, count, way, opens=self.samples.open)
            self.left_out *= way != "start"
            self._looks_ahead, self.has_begun = replay.looks_ahead(source), True
            self._before = resumed.get("before")
            return
        self._has_run_out = replay.starts_over(source)
        if replay.goes_on(source) and not self._has_run_out:
            replay.open_at(source, resumed["loader"], self.samples.open, self._announcer)
        else:
            replay.set_order(source, resumed, "now")
        # The validation that is repeated, and the next epoch, draw from them.
        replay.set_generators(source, resumed["now"])

    def state(self, random: dict[str, Any] | None = None) -> dict[str, Any]:
        """How far the run is in the user's loader."""
        if self._resumed is not None:
            return dict(self._resumed)
        # Before its iteration has begun, a loader would begin one to tell its state.
        is_under_way = self.has_begun and not self._pace.has_ended
        source = self._source if is_under_way or replay.goes_on(self._source) else None
        return {
            "samples": self.num_samples,
            "taken": self.num_taken,
            "left_out": self.left_out,
            "abandoned": self.abandoned,
            "loader": replay.read_loader(source, self.batches, self._announcer),
            "start": self._start,
            "head": state_of(self._head) if type(self._head) is tuple else self._head,
            "now": replay.read_start(self._source, random),
            "before": self._before if type(self._before) is not tuple else state_of(self._before),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Load what `state` returned: the next iteration goes on from there."""
        ranks, own = self._agreement.ranks, dict(state)
        of_ranks = own.pop("ranks", None) or []
        if ranks is not None and ranks.rank < len(of_ranks):
            own |= of_ranks[ranks.rank]
        self.num_samples, self.taken, self.abandoned = own["samples"], own["taken"], own["abandoned"]
        self.left_out = own["left_out"]
        self.held = []
        self._resumed, self._out = own, []
        self.iteration = self.open = self.offered = None


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
    def of(cls, held: FollowedChunk, kind: int | None) -> Part | None:
        """The report of a batch; None if nothing can be learned from it."""
        if held.members is None or not len(held.members.indices):
            return None
        indices, counts, means = held.members.indices, held.members.counts, held.reports[0]
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
    order = order_of(indices)
    ordered = indices[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    if ordered[0] >= 0 and not len(again):
        yield parts
        return
    part_of = np.repeat(np.arange(len(parts)), [len(each.indices) for each in parts])
    before, after = part_of[order[again]], part_of[order[again + 1]]
    if ordered[0] < 0 or (before == after).any():
        yield from rounds([some for each in parts for some in distinct(each)])
        return
    # The newest part before each that holds one of its samples.
    newest = np.full(len(parts), -1)
    np.maximum.at(newest, after, before)
    start = 0
    for place, last in enumerate(newest.tolist()):
        if last >= start:
            yield parts[start:place]
            start = place
    yield parts[start:]


def _joined(parts: list[Part]) -> Ints:
    """int64[M], the samples of all parts."""
    return np.concatenate([np.empty(0, np.int64), *(each.indices for each in parts)])


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
