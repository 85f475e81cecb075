"""The handling of batches whose loss is not good, and of those that get no loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import events
from ..guard.monitor import MOST_SUSPICION
from ..guard.verdict import Verdict
from ..recovery.moment import go_back
from ..recovery.restore import RestoreResult
from ..sampling.ticket import Outcome, Ticket
from . import step

if TYPE_CHECKING:
    from .engine import Engine

ABANDONED = (
    "the batch of step {step} was not reported with update_with_loss(); such batches are drawn once more at the end of "
    "the epoch, and count as refused steps if they are not reported then. For a loader that works ahead use draw() and "
    "report()."
)


def report_in_turn(run: Engine, ticket: Ticket, judged: step.Judged) -> Outcome | None:
    """Report a loss that is not simply good; None if it must be judged again, as another call came first."""
    with run.turns.take("report", ticket.step) as turn:
        if not run.is_now(ticket, judged):
            return None
        turn.is_changing = True
        verdict, restored = _answer(run, ticket, judged)
        run.pace.begin_break()
        return Outcome(verdict, _rate_after(run, judged), None if restored is None else restored.step)


def _rate_after(run: Engine, judged: step.Judged) -> float:
    return run.search.lr or (run.lr if judged.lr != judged.lr else run.controller.lr(judged.lr))


def _answer(run: Engine, ticket: Ticket, judged: step.Judged) -> tuple[Verdict, RestoreResult | None]:
    """Act on a verdict; returns the final verdict, and the state that was restored."""
    reading, verdict = judged.reading, judged.judgement.verdict
    if ticket.epoch < 0:
        restored = run.search.take(ticket.batch, reading.mean, ticket.lr, refused=verdict is not Verdict.GOOD)
        run.use_found_lr()
        return verdict, restored
    if run.controller.replay.is_on and math.isfinite(reading.mean):
        restored = _compare_replay(run, ticket, judged)
        if restored is not None:
            return Verdict.SKIPPED, restored
    if verdict is Verdict.GOOD:
        _learn(run, ticket, judged)
        return verdict, None
    suspicion = run.sentry.suspicion_of(judged.judgement)
    run.sentry.keep(judged.judgement)
    if verdict is Verdict.RAISED and not run.controller.doubts_level:
        restored = run.controller.accept_level(
            lr=run.controller.lr(judged.lr), draws=run._num_draws, step=run.pace.step + 1
        )
        if restored is not None:
            # From here on, the guard takes losses of this level as usual.
            _close_unlearned(run, ticket)
            return verdict, restored
        run.sentry.overrule()
        verdict = Verdict.DRIFT
    if verdict is Verdict.DRIFT:
        _learn(run, ticket, judged._replace(judgement=judged.judgement._replace(verdict=verdict)))
        run.controller.drifted(reading.mean, run.controller.lr(judged.lr))
        return verdict, None
    if verdict is Verdict.SKIPPED:
        _close_unlearned(run, ticket)
        return verdict, None
    return verdict, _refuse(run, ticket, judged, verdict, suspicion)


def _learn(run: Engine, ticket: Ticket, judged: step.Judged) -> None:
    ended = step.learn(run, ticket, judged)
    if run.announcer.is_heard:
        run.emitter.end()
        step.tell(run, ticket, judged, ended)


def _close_unlearned(run: Engine, ticket: Ticket) -> None:
    """Count a step that nothing is learned from."""
    run.plan.settle(ticket.batch)
    run.pace.num_out -= 1
    run.pace.step += 1
    step.tell_epoch(run, ticket, step.end_epoch(run))


def discard(run: Engine, ticket: Ticket) -> None:
    """Count a batch whose training was undone before its loss was judged; see `Engine.discard`."""
    if ticket.epoch < 0:
        run.search.skip(ticket.batch)
        run.use_found_lr()
    else:
        _close_unlearned(run, ticket)


def _refuse(
    run: Engine, ticket: Ticket, judged: step.Judged, verdict: Verdict, suspicion: float
) -> RestoreResult | None:
    _close_unlearned(run, ticket)
    restored = run.controller.refused(
        ticket,
        judged.reading,
        verdict,
        scheduled_lr=judged.lr,
        most_steady=_most_steady(run, ticket.epoch),
        draws=run._num_draws,
        step=run.pace.step,
        is_calm=suspicion < MOST_SUSPICION,
    )
    return _gone_back(run, restored)


def _compare_replay(run: Engine, ticket: Ticket, judged: step.Judged) -> RestoreResult | None:
    """Compare the loss of a replayed batch with the first one; returns the restored state if they differ."""
    restored = run.controller.replayed(ticket, judged.reading.mean, step=run.pace.step + 1, draws=run._num_draws)
    if restored is not None:
        _close_unlearned(run, ticket)
    return _gone_back(run, restored)


def answer_damage(run: Engine, array: str) -> RestoreResult | None:
    """Restore a model that holds non-finite numbers although its losses were finite."""
    if run.search.is_on:
        run.persistence.note_answered()
        return None
    scheduled = run.scheduled_lr(run.pace.progress_at(run.pace.step))
    with run.turns.take("between_steps", run.pace.step) as turn:
        turn.is_changing = True
        try:
            restored = run.controller.damaged(
                array,
                step=run.pace.step,
                scheduled_lr=scheduled,
                most_steady=_most_steady(run, run.pace.epoch),
                draws=run._num_draws,
            )
            return _gone_back(run, restored)
        finally:
            run.persistence.note_answered()


def _gone_back(run: Engine, restored: RestoreResult | None) -> RestoreResult | None:
    """Restore the guard and the table's trend to the state of a model that was restored."""
    if restored is not None and restored.moment is not None:
        go_back(restored.moment, run.sentry, run.table, forget=restored.forget)
    elif restored is not None and restored.guard is not None and _has_same_baseline(run, restored.guard):
        run.sentry.go_back_to_saved(restored.guard, is_trial=restored.forget)
    return restored


def _has_same_baseline(run: Engine, guard: Mapping[str, Any]) -> bool:
    """Whether the guard's state in a checkpoint is from the current baseline."""
    return bool(guard.get("baseline", 0) == run.sentry.baseline)


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
        step.tell_epoch(run, ticket, step.end_epoch(run))
