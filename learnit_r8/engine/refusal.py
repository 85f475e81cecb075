"""The handling of batches whose loss is not good, and of those that get no loss."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import events
from ..guard.monitor import MOST_SUSPICION
from ..guard.verdict import Verdict
from ..recovery.moment import go_back
from ..recovery.restore import RestoreResult
from ..sampling.ticket import Ticket
from ..table.losses import Reading
from .interruption import PendingCall, mend
from .marks import AnswerMark

if TYPE_CHECKING:
    from .engine import Engine

ABANDONED = (
    "the batch of step {step} was not reported with update_with_loss(); such batches are drawn once more at the end of "
    "the epoch, and count as refused steps if they are not reported then. For a loader that works ahead use draw() and "
    "report()."
)


def answer(
    run: Engine, ticket: Ticket, reading: Reading, kind: int, expected: float, verdict: Verdict
) -> tuple[Verdict, RestoreResult | None]:
    """Act on a verdict other than GOOD; returns the final verdict, and the state that was restored."""
    run._marks.answering = AnswerMark(run, ticket)
    if verdict is Verdict.RAISED and not run.controller.doubts_level:
        restored = run.controller.accept_level(lr=run.lr, draws=run._num_draws, step=run.pace.step + 1)
        if restored is not None:
            # From here on, the guard takes losses of this level as usual.
            run.close_unlearned(ticket)
            return verdict, restored
        run.sentry.overrule()
        verdict = Verdict.DRIFT
    if verdict is Verdict.DRIFT:
        run.learn(ticket, reading, kind, expected)
        run.controller.drifted(reading.mean, run.lr)
        return verdict, None
    if verdict is Verdict.SKIPPED:
        run.close_unlearned(ticket)
        return verdict, None
    return verdict, _refuse(run, ticket, reading, verdict)


def _refuse(run: Engine, ticket: Ticket, reading: Reading, verdict: Verdict) -> RestoreResult | None:
    run.close_unlearned(ticket)
    restored = run.controller.refused(
        ticket,
        reading,
        verdict,
        scheduled_lr=run.scheduled_lr(run.pace.progress_at(run.pace.step)),
        most_steady=_most_steady(run, ticket.epoch),
        draws=run._num_draws,
        step=run.pace.step,
        is_calm=run.sentry.suspicion < MOST_SUSPICION,
    )
    return _gone_back(run, restored)


def compare_replay(run: Engine, ticket: Ticket, reading: Reading) -> RestoreResult | None:
    """Compare the loss of a replayed batch with the first one; returns the restored state if they differ."""
    run._marks.answering = AnswerMark(run, ticket)
    restored = run.controller.replayed(ticket, reading.mean, step=run.pace.step + 1, draws=run._num_draws)
    if restored is not None:
        run.close_unlearned(ticket)
    return _gone_back(run, restored)


def answer_damage(run: Engine, array: str) -> RestoreResult | None:
    """Restore a model that holds non-finite numbers although its losses were finite."""
    if run.search.is_on:
        run.persistence.note_answered()
        return None
    run._marks.answering = mark = AnswerMark(run)
    try:
        restored = run.controller.damaged(
            array,
            step=run.pace.step,
            scheduled_lr=run.scheduled_lr(run.pace.progress_at(run.pace.step)),
            most_steady=_most_steady(run, run.pace.epoch),
            draws=run._num_draws,
        )
        restored = _gone_back(run, restored)
        run.persistence.note_answered()
        return restored
    except Exception:
        run.persistence.note_answered()
        raise
    except BaseException:
        run._cut = mark
        mend(run)
        run._cut = PendingCall(functools.partial(answer_damage, run, array))
        raise


def _gone_back(run: Engine, restored: RestoreResult | None) -> RestoreResult | None:
    """Restore the guard and the table's trend to the state of a model that was restored."""
    if restored is not None and restored.moment is not None:
        go_back(restored.moment, run.sentry, run.table, forget=restored.forget)
    elif restored is not None and restored.guard is not None and _has_same_baseline(run, restored.guard):
        run.sentry.go_back_to_saved(restored.guard, is_trial=restored.forget)
    return restored


def _has_same_baseline(run: Engine, guard: Mapping[str, Any]) -> bool:
    """Whether the guard's state in a checkpoint is from the current baseline."""
    return bool(guard["baseline"] == run.sentry.baseline)


def _most_steady(run: Engine, epoch: int) -> int:
    # The first pass must see every sample, and one incident may cost at most a quarter of an epoch.
    return run.plan.steps_per_pass // 4 if epoch > 0 else 0


def give_up(run: Engine, ticket: Ticket, on_purpose: bool) -> None:
    """Take back a batch that will not be reported; see `Engine.give_up`."""
    if ticket.epoch < 0:
        run.search.skip(ticket.batch)
        run.use_found_lr()
        return
    drawn_again = run.plan.abandon(ticket.batch)
    run.pace.num_out -= 1
    run.announcer.tell(events.BatchAbandoned, epoch=ticket.epoch, drawn_again=drawn_again)
    if not on_purpose:
        run.announcer.warn_once("abandoned", ABANDONED.format(step=ticket.step))
    if not drawn_again:
        run.pace.step += 1
        run.end_epoch_if_complete(ticket)
