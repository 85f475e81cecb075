"""Marks: what a call of the scheduler is about to change, as it was before.

What is noted is put back as it is and never computed, so that doing it twice does no harm. Parts are noted whole where
that is cheap enough: an attribute that one of them gets later is then covered too.
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
    """The attributes of some objects, to be set again; the containers among them are copied.

    Args:
        parts: The objects, or pairs of an object and the names of those attributes of it that count.
    """

    def __init__(self, *parts: Any) -> None:
        self._saved: list[tuple[Any, dict[str, Any]]] = []
        for part in parts:
            owner, names = part if type(part) is tuple else (part, list(vars(part)))
            self._saved.append((owner, {name: _copied(getattr(owner, name)) for name in names}))

    def put_back(self) -> None:
        """Set them again."""
        for owner, values in self._saved:
            for name, value in values.items():
                setattr(owner, name, _copied(value))


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, _CONTAINERS) else value


def trouble_of(run: Engine) -> list[Any]:
    """What a refused report leaves behind, for good ones to change, as parts of a `Snapshot`."""
    controller, backup = run.controller, run._backup
    incident = controller._incident
    return [
        controller,
        controller.quarantine,
        controller.replay,
        controller._weight_age,
        incident,
        *incident.attempts[-1:],
        run.table.exclusions,
        (backup, ("slots",)),
        *(slot for slot in backup.slots if slot is not None),
    ]


class ReportMark(NamedTuple):
    """What a good report changes, as it was before; `Engine.report` notes it as a plain tuple.

    Attributes:
        before_refusal: Of the sentry.
        early: What the table has learned of the first losses only; None later.
        trouble: `trouble_of` the run, while there is any; else None.
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
        """Change it back, where ``loss`` was the mean of the batch."""
        run.sentry.undo(self.losses, self.norms, self.before_refusal, self.num_refused, self.num_skipped)
        run.table.undo_observe(self.num_reports, self.trend, self.early)
        is_counted = self.tally.num_good > self.num_good
        run.controller.undo(self.recovery, self.num_equal, loss if is_counted else None)
        self.tally.undo(self.num_good, self.total, self.samples)
        run.undo_epoch(self.tally, self.epoch_ended)
        run.persistence.backup.undo(self.slots, self.healthy)
        if self.trouble is not None:
            self.trouble.put_back()
        run.pace.undo(self.step, self.num_out)


class PlanMark:
    """What a draw that is not simply the next batch of a chunk changes, or giving a batch up, as it was before.

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
            # It is planned again, and nobody may report what was drawn of this one.
            chunk.give_up()
        self._snapshot.put_back()
        for chunk, drawn, states in self._chunks:
            _put_states(chunk, states)
            chunk.go_back_to(drawn)


PLACE = (
    "displaced", "abandoned", "_context", "chunk", "limit", "_open", "returned", "_waiting", "_drawn_before",
)  # fmt: skip
"""Attributes of a plan that say where it stands."""


def _places_of(plan: Plan) -> list[tuple[Chunk, int, bytes]]:
    return [(chunk, chunk.drawn, bytes(chunk.states)) for chunk in {*plan._open, plan.chunk}]


def _put_states(chunk: Chunk, states: bytes) -> None:
    """Set the states of batches again; what the table has learned since stays learned."""
    for slot, state in enumerate(states):
        if state != REPORTED and state != chunk.states[slot]:
            chunk.states[slot] = state


class AnswerMark:
    """What any other report than a good one changes besides, as it was before: nearly everything.

    Args:
        run: The run.
        ticket: The batch that is reported; None if there is none, and the model itself is damaged.

    Attributes:
        ticket: As given.
        outcome: What the report returned; None before.
    """

    def __init__(self, run: Engine, ticket: Ticket | None = None) -> None:
        self.ticket = ticket
        self.outcome: Outcome | None = None
        self._persistence = persistence = run.persistence
        persistence.note_judging()
        search, store = run.search, persistence.store
        self._batch = None if ticket is None else _BatchMark(run, ticket)
        # As it is now: what the guard remembered before it judged is in the other mark.
        self._snapshot = Snapshot(
            (run, ("schedule",)),
            (run.table.batch_trend, ("value",)),
            run.sentry,
            *trouble_of(run),
            *([] if store is None else [(store, ("_given_up",))]),
            search,
            *([] if search._test is None else [search._test]),
            (run.plan, ("_open",)),
        )

    @property
    def needs_redo(self) -> bool:
        """Whether the model was about to be put back, or was: what the report asked for must be done."""
        return self._persistence.has_restored

    def undo(self, run: Engine) -> None:
        """Change it back, but for the model."""
        self._snapshot.put_back()
        self._persistence.undo_restore()
        if self._batch is not None:
            self._batch.undo(run)


class _BatchMark:
    """What is known of the samples of a batch, and of the batch."""

    def __init__(self, run: Engine, ticket: Ticket) -> None:
        self._chunk, self._slot, _ = ticket.batch
        # Nothing but this batch is then learned while it is judged.
        run.plan.hand_over()
        start = self._slot * run.table.batch_size
        self._members = self._chunk.members[start : start + len(ticket.indices)]
        self._records = run.table.records.take(self._members)
        self._num_seen = run.table.num_seen
        self._state = self._chunk.states[self._slot]

    def undo(self, run: Engine) -> None:
        run.table.records.finish_writing()
        run.table.records.put(self._members, self._records.copy())
        run.table.undo_seen(self._num_seen)
        self._chunk.states[self._slot] = self._state


class DrawMark(NamedTuple):
    """What drawing the next batch of a chunk changes, as it was before; `Engine.draw_ahead` notes a plain tuple."""

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
    """What the calls of a run note of themselves, should they be cut short.

    Attributes:
        begun: The last draw: a `PlanMark`, or the fields of a `DrawMark`.
        answering: The last report that was not simply good.
        ended: The last ticket and the tally of an epoch whose end is still to be told.
        finished: A report that was complete though its call was cut short, and its outcome; None for that of a good
            loss.
    """

    def __init__(self) -> None:
        self.begun: Any = None
        self.answering: AnswerMark | None = None
        self.ended: tuple[Ticket, Tally] | None = None
        self.finished: tuple[Ticket, Outcome | None] | None = None
