"""Interruption: undoes what a call of the scheduler had changed when an exception interrupted it.

KeyboardInterrupt can come between any two bytecodes. So a call first saves what it is about to change in a mark, and
commits with a single store (of the batch's state, or of the mark). If an exception comes before that store, the saved
values are set again. None is computed, so undoing may itself be interrupted and repeated. Tested by
``tests/runs/test_interrupts.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..guard.verdict import Verdict
from ..recovery.policy import TrainingDiverged
from ..recovery.restore import RestoreError
from ..sampling.ticket import Outcome, Ticket
from ..table.losses import read_loss
from .marks import AnswerMark, DrawMark, PlanMark, ReportMark

if TYPE_CHECKING:
    from .engine import Engine


class PendingCall(NamedTuple):
    """The rest of an interrupted call that was undone: this function must be called."""

    call: Callable[[], object]


class Transaction:
    """A ``with`` block whose changes are undone if it raises.

    Args:
        run: The run.
        mark: The kind of mark, which determines what is undone; by default the plan and the counts.
    """

    def __init__(self, run: Engine, mark: type[PlanMark | AnswerMark] = PlanMark) -> None:
        self._run, self._mark = run, mark(run)

    def __enter__(self) -> None:
        """Do nothing: the mark was made with the block."""

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            self._run.cut_short(self._mark)
            mend(self._run)


def mend(run: Engine) -> None:
    """Undo what an interrupted call has changed.

    ``run._cut`` is a mark, the ticket that a draw would have returned, or the fields that `Engine.report` has saved. A
    `PendingCall` is left for `finish`.
    """
    if run._cut is not None and type(run._cut) is not PendingCall:
        with run._lock:
            _mend(run, run._cut)


def _mend(run: Engine, cut: Any) -> None:
    left: PendingCall | None = None
    if type(cut) is tuple and type(cut[0]) is tuple:
        left = _mend_report(run, *cut)
    elif type(cut) is tuple:
        DrawMark(*cut).undo(run)
    elif type(cut) is Ticket:
        _mend_draw(run, cut)
    else:
        cut.undo(run)
    # The cached rate may not belong to the cached progress: compute it again.
    run._last_progress = math.nan
    run._marks.begun = run._marks.answering = None
    run.cut_short(left)


def _mend_draw(run: Engine, ticket: Ticket) -> None:
    """Undo a completed draw, with its mark if nothing was drawn since."""
    if not ticket.batch.is_out:
        return
    if run._marks.begun is not None and run._num_draws == ticket.draw + 1:
        begun = run._marks.begun
        (DrawMark(*begun) if type(begun) is tuple else begun).undo(run)
    elif ticket.epoch >= 0:
        run.plan.returned.appendleft(ticket.batch)
        run.pace.num_out -= 1


def _mend_report(
    run: Any, noted: tuple[Any, ...], error: BaseException, arguments: dict[str, Any]
) -> PendingCall | None:
    """Undo a report unless it was complete; returns the call that must be repeated."""
    mark, answer = ReportMark(*noted), run._marks.answering
    ticket = mark.ticket
    if isinstance(error, (TrainingDiverged, RestoreError)) or not isinstance(ticket, Ticket):
        return None
    if type(error) is RuntimeError and (run.persistence.is_restoring or not ticket.batch.is_out):
        # The report was refused, as the ticket was not open.
        return None
    loss = _mean_of(ticket, arguments)
    if answer is not None and answer.ticket is ticket:
        answer.undo(run)
        mark.undo(run, loss)
        return PendingCall(functools.partial(_report_again, run, ticket, arguments)) if answer.needs_redo else None
    if ticket.batch.is_out:
        mark.undo(run, loss)
    elif run.pace.step > mark.step:
        # The batch's state is stored last, so the report is complete. The table must learn it before any other.
        run.plan.hand_over()
        run._marks.finished = ticket, None
    return None


def _mean_of(ticket: Ticket, arguments: dict[str, Any]) -> float:
    """The mean loss of a report; NaN if the loss was not valid."""
    try:
        return read_loss(arguments["loss"], len(ticket.indices), arguments["part_size"]).mean
    except (TypeError, ValueError):
        return math.nan


def _report_again(run: Any, ticket: Ticket, arguments: dict[str, Any]) -> None:
    if ticket.batch.is_out:
        run._marks.finished = ticket, run.report(ticket, **arguments)


def finish(run: Engine) -> None:
    """Undo what an interrupted call has changed, and repeat the call if it must be completed."""
    with run._lock:
        mend(run)
        cut = run._cut
        if cut is None:
            return
        run._cut = None
        try:
            cut.call()
        except Exception:
            # Such as TrainingDiverged: the call is complete.
            raise
        except BaseException:
            run._cut = run._cut or cut
            raise


def note_finished(run: Engine, ticket: Ticket, outcome: Outcome | None) -> None:
    """Remember the outcome of a complete report, so that a repeated call returns it; it may be lost already."""
    if ticket.batch.is_out or run._cut is not None:
        return
    answer, finished = run._marks.answering, run._marks.finished
    if outcome is not None or finished is None or finished[0] is not ticket:
        known = answer.outcome if answer is not None and answer.ticket is ticket else None
        run._marks.finished = ticket, known if outcome is None else outcome


def repeated(run: Engine, ticket: Ticket, error: BaseException) -> Outcome | None:
    """The outcome of the last complete report, if this ticket repeats it; otherwise None."""
    finished = run._marks.finished
    if finished is None or not isinstance(error, RuntimeError) or ticket.batch is not finished[0].batch:
        return None
    outcome = finished[1]
    # Not `or`: the outcome of a refused batch is false.
    return Outcome(Verdict.GOOD, run.lr, None) if outcome is None else outcome
