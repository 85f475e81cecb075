"""The user's own batches: where a run is in the loader they come from, how it comes there again, and their reports."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ...policies.base import Policy
from ...sampling.chunk import REPORTED, Batch, FollowedChunk, Size
from ...sampling.held_reports import HeldReports
from ...sampling.random_generators import hold_random_state, state_of
from ...table.labels.predictions import PredictionRows
from ...table.names import Members
from ...table.table import SampleTable
from . import replay
from .samples import BatchSamples

if TYPE_CHECKING:
    from ...events.bus import Announcer
    from ...recovery.agreement import Agreement
    from ...sampling.ticket import Ticket
    from ..pace import Pace
    from ..values import OwnBatches

UNKNOWN_LENGTH = sys.maxsize
"""Steps of a pass that only ends where its loader does."""

MOST_HELD = 2**13
"""Samples whose reports are held back at most, unless they are more in one batch: some .5 ms of learning."""


class UserBatches(NamedTuple):
    """Stands for the policy, which is the user's own."""

    name: str = "your own batches"
    needs_exact: bool = False
    weighs: bool = False


class FollowedBatches:
    """The source of batches that come from the user's loader; see `Source`, also for what is not said here.

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
        open: The batch in hand; None once it is reported.
        iteration: The iteration over the loader that is under way; None without one.
        samples: Finds out which samples the batches of this iteration hold.
        has_begun: Whether an iteration has.
        first_turn: Steps and probes reported as it began.
        length: Batches that the loader has, as far as it says; infinite where nobody knows.
        taken_before: Items that the loader had given by then in this pass.
    """

    steps_per_pass = pass_number = UNKNOWN_LENGTH
    can_probe = names_samples = counts_abandoned = False
    displaced = 0
    returned = ()
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
        self._held = HeldReports(table)
        self._offered: tuple[FollowedChunk, bool] | None = None
        self.samples = BatchSamples(table.storage, announcer, agreement)
        self.open: Ticket | None = None
        self.iteration: object = None
        self.has_begun = self._was_placed = self._looks_ahead = False
        self.first_turn = self.taken_before = 0
        self.length = math.inf
        self._batches: Iterator[Any] = iter(())
        # Batches that may not be reported yet.
        self._out: list[FollowedChunk] = []
        # The random generators before the loader gave the batch in hand, if it has fetched the next one already, which
        # was drawn from there.
        self._before: Any = None
        self._source: Any = None
        self._start: dict[str, Any] | None = None
        self._resumed: Mapping[str, Any] | None = None
        table.learner.hold_back(self)

    @property
    def has_end(self) -> bool:
        """See `Source`; a stream without a length ends where it does, and nothing of it is left out."""
        return self.length < math.inf

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

    def taken_by(self, step: int) -> int:
        """See `Source`."""
        return self.taken

    def most_steady(self, epoch: int) -> int:
        """None: nobody chooses among the user's batches."""
        return 0

    # Batches.

    def fetch(self, none: Any) -> Any:
        """The next item of the loader, for `offer`; ``none`` if it has none left."""
        if self._looks_ahead:
            self._before = hold_random_state()
        return next(self._batches, none)

    def skip(self, most: int) -> None:
        """Draw this many items of the loader at most, and drop them."""
        for _ in itertools.islice(self._batches, most):
            pass

    def find(self, item: Any) -> Members | None:
        """The samples of the item that `fetch` has just returned; None if they are not known."""
        members, num_left_out = self.samples.of(item, self._batches)
        self.left_out += num_left_out
        return members

    def offer(self, item: Any, size: Size, members: Members | None = None, *, is_of_loader: bool = True) -> None:
        """Say which batch the next one is.

        Args:
            item: What is kept of it as long as a backup may want it; None for nothing.
            size: Its size.
            members: Its samples, or None.
            is_of_loader: Whether it is of a loader; else there is nothing but the step.
        """
        self._offered = FollowedChunk(self.table, self._pace.epoch, item, size, members), is_of_loader

    def look_ahead(self) -> None:
        """None: the loader has been asked already, see `fetch`."""

    def start_pass(self, number: int, progress: float) -> str:
        """Nothing: a pass begins with an iteration, see `begin`."""
        return ""

    def next(self, ahead: None = None) -> Batch:
        """Hand out the batch that was offered."""
        batch = self.next_at_hand(0)
        assert batch is not None
        return batch

    def next_at_hand(self, epoch: int) -> Batch | None:
        """See `Source`; the batch that was offered."""
        if self._offered is None:
            return None
        (chunk, is_of_loader), self._offered = self._offered, None
        self.num_samples += chunk.size
        if chunk.members is not None:
            self._held.add(chunk.members, chunk)
        if is_of_loader:
            self.taken += 1
            # The others that are reported are left out where they are counted.
            while self._out and self._out[0].states[0]:
                del self._out[0]
            self._out.append(chunk)
        return chunk.batch()

    def again(self, witness: Any) -> Batch:
        """Hand out a batch once more, outside any pass."""
        return FollowedChunk(self.table, -1, witness, Size(), is_probe=True).batch()

    def draw_outside(self, policy: Policy) -> Batch | None:
        """None: nobody chooses among the user's batches."""
        return None

    def forget_outside(self) -> None:
        """Do nothing: there are none."""

    def tell_members(self, chunk: FollowedChunk, members: Members) -> None:
        """Note the samples of a batch that was taken without."""
        chunk.members = members
        self._held.add(members, chunk)

    def report(
        self, chunk: FollowedChunk, slot: int, means: Any, trend: float, predictions: PredictionRows | None = None
    ) -> None:
        """Keep the report of a batch, from which the table learns later."""
        if chunk.members is None:
            chunk.close(0)
            return
        chunk.reports[0], chunk.trends[0], chunk.states[0] = means, trend, REPORTED
        chunk.predictions.clear()
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

    def can_put_back(self, batch: Batch) -> bool:
        """Never, as the loader says what comes next."""
        return False

    put_back = can_put_back

    @property
    def is_full(self) -> bool:
        """Whether the reports that are held back are many enough to be learned."""
        return self._held.num_samples >= MOST_HELD

    def hand_over(self) -> None:
        """Let the table learn all reports so far."""
        self._held.hand_over()

    def use_offsets(self, trend: float) -> None:
        """Do nothing: no loss is predicted."""

    def check_again(self) -> None:
        """Do nothing: no batch is planned."""

    # The place in the loader.

    @property
    def is_resumed(self) -> bool:
        """Whether a saved place waits for the next iteration."""
        return self._resumed is not None

    def take_resumed(self) -> Mapping[str, Any] | None:
        """The saved place that waits, which is no longer waiting then; None without one."""
        resumed, self._resumed = self._resumed, None
        return resumed

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
        if not (replay.is_iterator(source) and source is self._source):
            self.taken = self.left_out = 0
            self._start = replay.read_start(source)
        self._source, self._out, self.taken_before = source, [], self.taken
        self._batches = self.samples.open(source)
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
        self.first_turn, self.length = pace.turns - (self.taken > 0), self._length_of(source)
        self._batches = iter(())
        if not pace.has_ended:
            way, count = self.settings.resume_data, self.taken + self.left_out
            self._batches = replay.resume(self._announcer, source, resumed, count, way, opens=self.samples.open)
            self.left_out *= way != "start"
            self._looks_ahead, self.has_begun = replay.looks_ahead(source), True
            self._before = resumed.get("before")
            return
        if replay.goes_on(source):
            replay.open_at(source, resumed["loader"], self.samples.open, self._announcer)
        else:
            replay.set_order(source, resumed["now"].get("order"))
        # The validation that is repeated, and the next epoch, draw from them.
        replay.set_generators(source, resumed["now"])

    def go_back(self, saved: Mapping[str, Any]) -> bool:
        """Bring the loader back to where it was when `state` returned this; returns whether it can be brought there."""
        again = replay.open_at(self._source, saved["loader"], self.samples.open, self._announcer)
        if again is not None:
            self.taken, self._out, self._batches, self._was_placed = saved["taken"], [], again, True
        return again is not None

    def state(self) -> dict[str, Any]:
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
            "loader": replay.read_loader(source, self._batches, self._announcer),
            "start": self._start,
            "now": replay.read_start(self._source),
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
        self._held.clear()
        self._resumed, self._out = own, []
        self.iteration = self.open = self._offered = None
