"""The place of a run in the user's loader: where it began, how far it is, and how it comes there again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import events
from ...sampling.loader_plan import LoaderBatch, LoaderPlan
from ...sampling.random_generators import state_of
from . import replay
from .samples import BatchSamples

if TYPE_CHECKING:
    from ..engine import Engine


class FeedSettings(NamedTuple):
    """How a run treats the user's loader.

    Attributes:
        keeps_witness: Whether the batch after a backup is kept, to be handed out again where weights are tested.
        after_restore: "next" or "again"; see `R8Scheduler`.
        resume_data: "replay", "indices" or "start"; see `R8Scheduler`.
    """

    keeps_witness: bool = True
    after_restore: str = "next"
    resume_data: str = "replay"


class LoaderPlace:
    """Knows how far a run is in the user's loader.

    Args:
        run: The engine.
        plan: Counts the batches.
        settings: How the loader is treated.

    Attributes:
        samples: Finds out which samples the batches of this iteration hold.
        batches: The iterator of the loader.
        out: Batches that may not be reported yet.
        has_begun: Whether an iteration has.
        first_turn: Steps and probes reported as it began.
        length: Batches that the loader has, as far as it says; infinite where nobody knows.
        taken_before: Items that the loader had given by then in this pass.
        looks_ahead: Whether the loader may fetch the next batch, in this process, before it gives one.
        before: The random generators before the loader gave the batch in hand, if it looks ahead: the next batch, which
            it has fetched already, was drawn from there.
    """

    def __init__(self, run: Engine, plan: LoaderPlan, settings: FeedSettings) -> None:
        self._run, self._plan, self._settings = run, plan, settings
        self.samples = BatchSamples(run)
        self.batches: Iterator[Any] = iter(())
        self.out: list[LoaderBatch] = []
        self.has_begun = self._was_placed = False
        self.first_turn = self.taken_before = 0
        self.length = math.inf
        self.looks_ahead = False
        self.before: Any = None
        self._source: Any = None
        self._start: dict[str, Any] | None = None
        self._resumed: Mapping[str, Any] | None = None

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
            self._start = _read(None)

    def resume_alone(self) -> None:
        """Set the random generators of a saved run whose loader is not forwarded."""
        resumed = self.take_resumed()
        if resumed is not None:
            replay.set_generators(None, resumed["now"])

    @property
    def num_taken(self) -> int:
        """Items that the loader has given in this pass and that were trained on or passed over."""
        self.out = [batch for batch in self.out if not batch.states[0]]
        return self._plan.taken - len(self.out)

    def begin(self, source: Any) -> None:
        """Begin a run through a loader, or go on with one that is an iterator."""
        plan = self._plan
        self._say_if_inexact(source)
        if self._was_placed:
            replay.forget_place(source)
            self._was_placed = False
        self.first_turn, self.length = self._run.pace.turns, self._length_of(source)
        if not (replay.is_iterator(source) and source is self._source):
            plan.taken = plan.left_out = 0
            self._start = _read(source)
        self._source, self.out, self.taken_before = source, [], plan.taken
        self.batches = self.samples.open(source)
        self.looks_ahead, self.before, self.has_begun = replay.looks_ahead(source), None, True

    def _length_of(self, source: Any) -> float:
        try:
            return len(source)
        except TypeError:
            # A DataLoader over a stream has the method, which raises.
            return self._run.pace.budget.steps_per_pass or math.inf

    def resume(self, source: Any) -> None:
        """Go on from the saved place, which may be the end of a pass."""
        run, pace, plan = self._run, self._run.pace, self._plan
        resumed = self.take_resumed()
        assert resumed is not None
        self._say_if_inexact(source)
        self._source, self._start, self._was_placed = source, resumed["start"], True
        if pace.passes or pace.has_ended:
            replay.begin_as_once(source)
        self.first_turn, self.length = pace.turns - (plan.taken > 0), self._length_of(source)
        self.batches = iter(())
        if not pace.has_ended:
            way, count = self._settings.resume_data, plan.taken + plan.left_out
            self.batches = replay.resume(run, source, resumed, count, way, opens=self.samples.open)
            plan.left_out *= way != "start"
            self.looks_ahead, self.before, self.has_begun = replay.looks_ahead(source), resumed.get("before"), True
            return
        if replay.goes_on(source):
            replay.open_at(source, resumed["loader"], self.samples.open, run.announcer)
        else:
            replay.set_order(source, resumed["now"].get("order"))
        # The validation that is repeated, and the next epoch, draw from them.
        replay.set_generators(source, resumed["now"])

    def _say_if_inexact(self, source: Any) -> None:
        text = "" if self._run.persistence.saver is None else replay.inexact(source)
        if text:
            self._run.announcer.warn_once("inexact loader", text)

    def go_back(self, before: int) -> None:
        """Go on where the loop is to go on, now that the model was restored from one of ``before`` updates."""
        run, updates = self._run, self._run.controller.lineage.updates
        undone = before - updates
        backup = run.backup.newest
        moment = None if backup is None or backup.updates != updates else backup.moment
        saved = None if moment is None or moment.state is None else moment.state["plan"]
        again = None
        if self._settings.after_restore == "again" and saved is not None:
            again = replay.open_at(self._source, saved["loader"], self.samples.open, run.announcer)
        if again is not None and saved is not None:
            self._plan.taken, self.out, self.batches, self._was_placed = saved["taken"], [], again, True
            text = f"the loader goes back with the model: the {undone} batches since then come again."
        else:
            text = f"the loader goes on with its next batch: the {undone} batches since then do not come again."
        run.announcer.tell(events.Notice, text=text, is_warning=False)

    def state_dict(self) -> dict[str, Any]:
        """The place, as it is saved."""
        if self._resumed is not None:
            return dict(self._resumed)
        # Before its iteration has begun, a loader would begin one to tell its state.
        is_under_way = self.has_begun and not self._run.pace.has_ended
        source = self._source if is_under_way or replay.goes_on(self._source) else None
        return {
            **self._plan.position(),
            "taken": self.num_taken,
            "loader": replay.read_loader(source, self.batches, self._run.announcer),
            "start": self._start,
            "now": _read(self._source),
            "before": self.before if type(self.before) is not tuple else state_of(self.before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned: the next iteration goes on from there."""
        ranks, own = self._run.agreement.ranks, dict(state)
        of_ranks = own.pop("ranks", None) or []
        if ranks is not None and ranks.rank < len(of_ranks):
            own |= of_ranks[ranks.rank]
        self._plan.load_state_dict(own)
        self._resumed, self.out = own, []


def _read(source: Any) -> dict[str, Any]:
    """What the batches from here on depend on."""
    return {**replay.read_generators(source), "order": replay.read_order(source)}
