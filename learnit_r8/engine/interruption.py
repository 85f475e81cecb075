"""Interruption: what a call of the scheduler had changed when an exception cut it short, and how to change it back.

KeyboardInterrupt can come between any two bytecodes. So a call first leaves a mark of all that it is about to change,
and changes it for good with a single store (of the state of the batch, or of the mark). What an exception cuts short
before that store is undone from the mark, with values that were noted and not computed: doing it twice does no harm,
should it be interrupted too. Proof: ``tests/runs/test_interrupts.py``.
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
    """What is left of a call that was cut short and changed back: to call this."""

    call: Callable[[], object]


class Transaction:
    """A ``with`` block that changes the plan and the counts as a whole, or not at all; or what another mark notes.

    Args:
        run: The run.
        mark: The kind of mark.
    """

    def __init__(self, run: Engine, mark: type[PlanMark | AnswerMark] = PlanMark) -> None:
        self._run, self._mark = run, mark(run)

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            self._run.cut_short(self._mark)
            mend(self._run)


def mend(run: Engine) -> None:
    """Change back what a call that was cut short has changed.

    In ``run._cut`` is a mark, or the ticket that a draw would have returned, or what `Engine.report` has noted; or
    `PendingCall`, which is left for `finish`.
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
    # The two that belong together may be torn: the rate is computed anew.
    run._last_progress = math.nan
    run._marks.begun = run._marks.answering = None
    run.cut_short(left)


def _mend_draw(run: Engine, ticket: Ticket) -> None:
    """Undo a draw that was done; by the mark, if nothing was drawn since."""
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
    """Undo a report unless it was complete; what is to be done again."""
    mark, answer = ReportMark(*noted), run._marks.answering
    ticket = mark.ticket
    if isinstance(error, (TrainingDiverged, RestoreError)) or not isinstance(ticket, Ticket):
        return None
    if type(error) is RuntimeError and (run.persistence.is_restoring or not ticket.batch.is_out):
        # The ticket was not to be reported, and that is what it says.
        return None
    loss = _mean_of(ticket, arguments)
    if answer is not None and answer.ticket is ticket:
        answer.undo(run)
        mark.undo(run, loss)
        return PendingCall(functools.partial(_report_again, run, ticket, arguments)) if answer.needs_redo else None
    if ticket.batch.is_out:
        mark.undo(run, loss)
    elif run.pace.step > mark.step:
        # The state of the batch is what is stored last. A late report is learned from before any other.
        run.plan.hand_over()
        run._marks.finished = ticket, None
    return None


def _mean_of(ticket: Ticket, arguments: dict[str, Any]) -> float:
    """The mean loss of a report; NaN if it was none."""
    try:
        return read_loss(arguments["loss"], len(ticket.indices), arguments["part_size"]).mean
    except (TypeError, ValueError):
        return math.nan


def _report_again(run: Any, ticket: Ticket, arguments: dict[str, Any]) -> None:
    if ticket.batch.is_out:
        run._marks.finished = ticket, run.report(ticket, **arguments)


def finish(run: Engine) -> None:
    """Change back what was cut short, and do again what must be done."""
    with run._lock:
        mend(run)
        cut = run._cut
        if cut is None:
            return
        run._cut = None
        try:
            cut.call()
        except Exception:
            # The answer to a refused loss, such as TrainingDiverged.
            raise
        except BaseException:
            run._cut = run._cut or cut
            raise


def note_finished(run: Engine, ticket: Ticket, outcome: Outcome | None) -> None:
    """Note that a report may be repeated if it was complete; its outcome may be lost already."""
    if ticket.batch.is_out or run._cut is not None:
        return
    answer, finished = run._marks.answering, run._marks.finished
    if outcome is not None or finished is None or finished[0] is not ticket:
        known = answer.outcome if answer is not None and answer.ticket is ticket else None
        run._marks.finished = ticket, known if outcome is None else outcome


def repeated(run: Engine, ticket: Ticket, error: BaseException) -> Outcome | None:
    """What the report of this ticket returned, or would have, if its call was cut short; None if it was not."""
    finished = run._marks.finished
    if finished is None or not isinstance(error, RuntimeError) or ticket.batch is not finished[0].batch:
        return None
    outcome = finished[1]
    # A refused outcome is false.
    return Outcome(Verdict.GOOD, run.lr, None) if outcome is None else outcome
