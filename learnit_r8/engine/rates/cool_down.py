"""The cool-down that ends a run when it is asked for: the rate falls from there on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import events
from ...schedules.schedule import WarmupStableDecay
from ...schedules.span import Span

if TYPE_CHECKING:
    from ..engine import Engine


def check_cool_down(run: Engine, span: Span | None) -> Span:
    """The span of a cool-down that is about to be asked for; None stands for the rule's share of the whole run.

    Raises:
        ValueError: it would be longer than what is left.
        RuntimeError: the run is over.
    """
    pace = run.pace
    if pace.is_over:
        raise RuntimeError(f"cool_down() was called at step {pace.step} of a run that is over.")
    span = span or run.requests.default_span
    pace.with_cool_down(span, run.rates.scheduled(pace.progress_at(pace.step)))
    return span


def begin_branch(run: Engine, span: Span, step: int) -> None:
    """Let a run that was just resumed from a checkpoint of its stable part end with a cool-down.

    Raises:
        ValueError: the checkpoint is of the decay already, or the cool-down is longer than what is left.
    """
    pace = run.pace
    progress = pace.progress_at(step)
    is_decaying = isinstance(run.rates.schedule, WarmupStableDecay) and progress > 1 - run.rates.schedule.decay
    if pace.budget.cool_down is not None or is_decaying:
        raise ValueError(
            f"cool_down needs a checkpoint of the stable part, got one of step {step}, where the rate already falls."
        )
    pace.end_at(pace.with_cool_down(span, run.rates.scheduled(progress)))
    run.rates.follow_schedule()
    run.persistence.wake()


def begin_cool_down(run: Engine, span: Span, source: str) -> None:
    """Let the rate fall from here on, and the run end with it; a notice says so where that is not possible.

    Args:
        run: The run, between two steps.
        span: Length of the cool-down.
        source: Who asked for it; "" for the program itself.
    """
    pace, before = run.pace, run.pace.budget
    if pace.is_over:
        return
    lr = run.rates.scheduled(pace.progress_at(pace.step))
    try:
        budget = pace.with_cool_down(span, lr)
    except ValueError as error:
        asked = f"the cool-down asked for {source} is ignored: {error}"
        run.announcer.tell(events.Notice, text=asked, is_warning=True)
        return
    is_same = before.cool_down is not None and (before.steps, before.seconds) == (budget.steps, budget.seconds)
    if not is_same:
        pace.end_at(budget)
    # If this is interrupted, it is done again: the end stays, as it is the same.
    run.rates.follow_schedule()
    run.persistence.wake()
    ending = pace.budget
    assert ending.cool_down is not None
    if not is_same:
        run.announcer.tell(
            events.CoolDownBegan,
            total_steps=ending.steps,
            train_duration_seconds=ending.seconds,
            until=ending.cool_down.until,
            lr=ending.cool_down.lr,
            reason=source,
        )
