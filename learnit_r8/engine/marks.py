"""Marks: the values that a call of the scheduler is about to change, saved so that it can be undone.

Saved values are set again and never computed, so undoing twice does no harm. Where that is cheap enough, all attributes
of a part are saved, which covers any that are added later.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from ..recovery.ram_backup import Slots
from ..sampling.chunk import REPORTED, Chunk
from ..sampling.ticket import Outcome, Ticket
from .tally import Tally

if TYPE_CHECKING:
    from ..sampling.plan import Plan
    from .engine import Engine

_CONTAINERS = (list, deque, set, dict, bytearray)


class Snapshot:
    """Saved attributes of some objects; containers among them are copied.

    Args:
        parts: Objects, or pairs of an object and the names of the attributes to save.
    """

    def __init__(self, *parts: Any) -> None:
        self._saved: list[tuple[Any, dict[str, Any]]] = []
        for part in parts:
            owner, names = part if type(part) is tuple else (part, list(vars(part)))
            self._saved.append((owner, {name: _copied(getattr(owner, name)) for name in names}))

    def put_back(self) -> None:
        """Set the saved attributes again."""
        for owner, values in self._saved:
            for name, value in values.items():
                setattr(owner, name, _copied(value))


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, _CONTAINERS) else value


def trouble_of(run: Engine) -> list[Any]:
    """The parts for a `Snapshot` that good reports change only after a refused one."""
    controller, backup = run.controller, run._backup
    incident = controller._incident
    return [
        controller,
        controller.quarantine,
        controller.replay,
        controller._weight_age,
        incident,
        *incident.attempts[-1:],
        run.table.storage.exclusions,
        (backup, ("slots",)),
        *(slot for slot in backup.slots if slot is not None),
    ]


class ReportMark(NamedTuple):
    """The values before a good report; `Engine.report` saves them as a plain tuple.

    Attributes:
        before_refusal: The sentry's state before its last refusal.
        early: The table's state for the first losses; None later.
        trouble: `trouble_of` the run after a refusal; otherwise None.
    """

    ticket: Ticket
    losses: Any
    norms: Any
    before_refusal: Any
    num_refused: int
    num_skipped: int
    trend: float
    num_reports: int
    early: Any
    step: int
    num_out: int
    recovery: Any
    num_equal: int
    tally: Tally
    num_good: int
    total: float
    samples: int
    epoch_ended: bool
    slots: Slots
    healthy: tuple[int | None, int | None] | None
    trouble: Snapshot | None

    def undo(self, run: Engine, loss: float) -> None:
        """Undo the report; ``loss`` was the mean loss of the batch."""
        run.sentry.undo(self.losses, self.norms, self.before_refusal, self.num_refused, self.num_skipped)
        run.table.learner.undo_observe(self.num_reports, self.trend, self.early)
        is_counted = self.tally.num_good > self.num_good
        run.controller.undo(self.recovery, self.num_equal, loss if is_counted else None)
        self.tally.undo(self.num_good, self.total, self.samples)
        run.undo_epoch(self.tally, self.epoch_ended)
        run.persistence.backup.undo(self.slots, self.healthy)
        if self.trouble is not None:
            self.trouble.put_back()
        run.pace.undo(self.step, self.num_out)


class PlanMark:
    """The values before a special draw (`draws`), or before a batch is given up.

    Args:
        run: The run.
    """

    def __init__(self, run: Engine) -> None:
        plan, search = run.plan, run.search
        pace, planner = run.pace, plan._planner
        self._snapshot = Snapshot(
            (run._tally, ("began", "num_good", "total", "samples")),
            (run, ("_tally", "_num_draws", "_epoch_ended", "schedule")),
            (run._marks, ("ended",)),
            (pace, ("step", "num_out")),
            (run.controller, ("_state",)),
            run.controller.replay,
            (plan, PLACE),
            (planner, ("num_sweeps", "_num_outside", "_sweep")),
            planner._sweep,
            (search, ("_test", "found_lr")),
            *([] if search._test is None else [search._test]),
        )
        self._chunks = _places_of(plan)

    def undo(self, run: Engine) -> None:
        """Change it back."""
        known = [chunk for chunk, _, _ in self._chunks]
        for chunk in {*run.plan._open, run.plan.chunk}.difference(known):
            # The chunk is planned again, so batches drawn from this one must not be reported.
            chunk.give_up()
        self._snapshot.put_back()
        for chunk, drawn, states in self._chunks:
            _put_states(chunk, states)
            chunk.go_back_to(drawn)


PLACE = (
    "displaced", "abandoned", "_context", "chunk", "limit", "_open", "returned", "_waiting", "_drawn_before",
)  # fmt: skip
"""Attributes of a plan that hold its position."""


def _places_of(plan: Plan) -> list[tuple[Chunk, int, bytes]]:
    return [(chunk, chunk.drawn, bytes(chunk.states)) for chunk in {*plan._open, plan.chunk}]


def _put_states(chunk: Chunk, states: bytes) -> None:
    """Set the states of batches again, except those that the table has learned since."""
    for slot, state in enumerate(states):
        if state != REPORTED and state != chunk.states[slot]:
            chunk.states[slot] = state


class AnswerMark:
    """The further values before a report that is not simply good, which may change nearly everything.

    Args:
        run: The run.
        ticket: The reported batch; None if the model itself was found damaged.

    Attributes:
        ticket: As given.
        outcome: The outcome of the report; None before.
    """

    def __init__(self, run: Engine, ticket: Ticket | None = None) -> None:
        self.ticket = ticket
        self.outcome: Outcome | None = None
        self._persistence = persistence = run.persistence
        persistence.note_judging()
        search, store = run.search, persistence.store
        self._batch = None if ticket is None else _BatchMark(run, ticket)
        # The sentry after its verdict: its state before is in the ReportMark.
        self._snapshot = Snapshot(
            (run, ("schedule",)),
            (run.table.storage.batch_trend, ("value",)),
            run.sentry,
            *trouble_of(run),
            *([] if store is None else [(store, ("_given_up",))]),
            search,
            *([] if search._test is None else [search._test]),
            (run.plan, ("_open",)),
        )

    @property
    def needs_redo(self) -> bool:
        """Whether a restore of the model has begun, so that the report must be completed."""
        return self._persistence.has_restored

    def undo(self, run: Engine) -> None:
        """Undo the changes, except in the model."""
        self._snapshot.put_back()
        self._persistence.undo_restore()
        if self._batch is not None:
            self._batch.undo(run)


class _BatchMark:
    """The records of a batch's samples, and the state of the batch."""

    def __init__(self, run: Engine, ticket: Ticket) -> None:
        self._chunk, self._slot, _ = ticket.batch
        # So that the table learns no other report while this one is judged.
        run.plan.hand_over()
        start = self._slot * run.table.batch_size
        self._members = self._chunk.members[start : start + len(ticket.indices)]
        self._records = run.table.storage.records.take(self._members)
        self._evidence = run.table.storage.evidence.take(self._members)
        self._num_seen = run.table.num_seen
        self._state = self._chunk.states[self._slot]

    def undo(self, run: Engine) -> None:
        storage = run.table.storage
        storage.records.finish_writing()
        storage.records.put(self._members, self._records.copy())
        storage.evidence.put_back(self._members, self._evidence)
        storage.num_seen = self._num_seen
        self._chunk.states[self._slot] = self._state


class DrawMark(NamedTuple):
    """The values before drawing the next batch of a chunk; `Engine.draw_ahead` saves them as a plain tuple."""

    chunk: Chunk
    drawn: int
    num_out: int
    num_draws: int

    def undo(self, run: Engine) -> None:
        """Change it back."""
        self.chunk.go_back_to(self.drawn)
        run.pace.undo(run.pace.step, self.num_out)
        run.undo_draws(self.num_draws)


class Marks:
    """The marks that the calls of a run leave in case they are interrupted.

    Attributes:
        begun: The mark of the last draw: a `PlanMark`, or the fields of a `DrawMark`.
        answering: The mark of the last report that was not simply good.
        ended: The last ticket and the tally of an epoch whose end listeners have not heard of yet.
        finished: The ticket of a complete report whose call was interrupted, and its outcome; None for a good loss.
    """

    def __init__(self) -> None:
        self.begun: Any = None
        self.answering: AnswerMark | None = None
        self.ended: tuple[Ticket, Tally] | None = None
        self.finished: tuple[Ticket, Outcome | None] | None = None
