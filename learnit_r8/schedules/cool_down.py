"""The cool-down: from any step of a run, a decay to an end that is known from then on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from .budget import Budget
from .schedule import DEFAULT_DECAY, DEFAULT_SHAPE, SHAPES
from .span import Span, checked_span


class CoolDownRule(NamedTuple):
    """What a run does in every cool-down.

    Attributes:
        floor: Last rate.
        shape: One of `SHAPES`.
        share: Share of the whole run, in (0, 1), that a cool-down of no given length takes.
    """

    floor: float = 0.0
    shape: str = DEFAULT_SHAPE
    share: float = DEFAULT_DECAY


@dataclass(frozen=True)
class CoolDown:
    """The decay to the end of a run that was asked for on the way; a schedule of progress towards that end.

    Attributes:
        begin: Progress at which it begins, in [0, 1).
        lr: Rate at its beginning, before the factor of recovery.
        floor: Rate at its end.
        shape: One of `SHAPES`.
        step: Steps reported when it began.
        until: Wall time of the end, seconds since 1970; None where steps or training seconds count.

    >>> rate = CoolDown(begin=0.5, lr=0.1, floor=0.0, shape="linear", step=50)
    >>> rate(0.5), rate(0.75), rate(1.0)
    (0.1, 0.05, 0.0)
    """

    begin: float
    lr: float
    floor: float
    shape: str
    step: int
    until: float | None = None

    def __call__(self, progress: float) -> float:
        if progress <= self.begin or self.begin >= 1:
            return self.lr if self.begin < 1 else self.floor
        share = min(1.0, (progress - self.begin) / (1 - self.begin))
        return self.floor + (self.lr - self.floor) * SHAPES[self.shape](share)


def cool_down_budget(
    budget: Budget,
    span: Span,
    rule: CoolDownRule,
    *,
    lr: float,
    step: int,
    seconds: float,
    steps_per_epoch: int,
    wall: Callable[[], float] = time.time,
    least_steps: int = 1,
) -> Budget:
    """The budget that a cool-down from here leaves.

    Args:
        budget: The budget so far.
        span: Its length.
        rule: Its rates.
        lr: The scheduled rate now.
        step: Steps reported so far.
        seconds: Training seconds so far.
        steps_per_epoch: Steps in an epoch.
        wall: Returns seconds since 1970.
        least_steps: Batches that are out already, and at least 1.

    Raises:
        ValueError: it would end later than the run does anyway, or at a time that is past.
    """
    if budget.tokens is not None or budget.passes is not None:
        # Where that ends in steps or seconds is not known.
        budget = Budget()
    is_share, span = span.unit == "share", _counted(span, budget, step, seconds, steps_per_epoch)
    if span.unit == "steps":
        ends = Budget(steps=step + max(least_steps, int(span.amount)))
        begin = step / ends.steps if ends.steps else 0.0
    else:
        left = span.amount - wall() if span.unit == "until" else span.amount
        if left <= 0:
            raise ValueError(f"a cool-down must end in the future, got {span}.")
        ends = Budget(seconds=seconds + left)
        begin = seconds / (seconds + left)
    if _time_left(ends, step, seconds) > _time_left(budget, step, seconds, like=ends):
        if not is_share:
            raise ValueError(
                f"a cool-down must not be longer than what is left of the run, got {span} at step {step} of a run that "
                f"ends {_end_of(budget)}."
            )
        ends = Budget(steps=budget.steps, seconds=budget.seconds)
        begin = budget.progress(step, seconds)
    until = span.amount if span.unit == "until" else None
    cool_down = CoolDown(begin, lr, min(rule.floor, lr), rule.shape, step, until)
    return replace(ends, cool_down=cool_down)


def _counted(span: Span, budget: Budget, step: int, seconds: float, steps_per_epoch: int) -> Span:
    """Convert a span to steps, to seconds, or to a wall time."""
    if span.unit == "epochs":
        if steps_per_epoch == sys.maxsize:
            raise ValueError(
                "a cool-down must be given in steps or as a time where the length of an epoch is not known, got "
                f"{span}."
            )
        return checked_span("steps", math.ceil(span.amount * steps_per_epoch))
    if span.unit != "share":
        return span
    factor = span.amount / (1 - span.amount)
    if budget.seconds is not None and seconds > 0:
        return Span("seconds", seconds * factor)
    return Span("steps", max(1, math.ceil(step * factor)))


def _time_left(budget: Budget, step: int, seconds: float, *, like: Budget | None = None) -> float:
    """What is left of a budget, in its own unit or in that of another one, at the speed so far; inf if unknown."""
    if like is not None and (like.steps is None) != (budget.steps is None) and not budget.is_open:
        if not step or seconds <= 0:
            return math.inf
        each = seconds / step
        if like.steps is None:
            return (budget.steps or 0) * each - seconds
        return ((budget.seconds or 0.0) - seconds) / each
    if budget.steps is not None:
        return budget.steps - step
    # A rounding of the sum must not make equal ends differ.
    return math.inf if budget.seconds is None else (budget.seconds - seconds) * (1 - 1e-9 * (like is None))


def _end_of(budget: Budget) -> str:
    if budget.cool_down is not None and budget.cool_down.until is not None:
        return str(Span("until", budget.cool_down.until))
    unit = f"at step {budget.steps}" if budget.steps is not None else f"after {budget.seconds or 0.0:.1f} s"
    return f"{unit}, where a cool-down ends" if budget.cool_down is not None else unit


def state_of(budget: Budget) -> dict[str, Any] | None:
    """The end that a cool-down has set, as plain values; None without one."""
    if budget.cool_down is None:
        return None
    return {"steps": budget.steps, "seconds": budget.seconds, **asdict(budget.cool_down)}


def from_state(state: dict[str, Any]) -> Budget:
    """The budget that `state_of` was taken of."""
    facts = dict(state)
    steps, seconds = facts.pop("steps"), facts.pop("seconds")
    return Budget(steps=steps, seconds=seconds, cool_down=CoolDown(**facts))
