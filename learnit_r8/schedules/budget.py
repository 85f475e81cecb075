"""The budget: how much training there is, in steps or in seconds, and how much of it is done."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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


def counted(span: Span, budget: Budget, step: int, seconds: float, steps_per_epoch: int) -> Span:
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


def is_later(ends: Budget, budget: Budget, step: int, seconds: float) -> bool:
    """Whether one budget ends after another, at the speed so far; false if that is not known, or the other is open."""
    if ends.steps is not None and budget.steps is not None:
        return ends.steps > budget.steps
    each = seconds / step if step and seconds > 0 else math.nan
    end, most = (each * (one.steps or math.inf) if one.seconds is None else one.seconds for one in (ends, budget))
    # A rounding of the sum must not make equal ends differ.
    return end > most * (1 + 1e-9)


def end_of(budget: Budget) -> str:
    """When a budget ends, in words."""
    if budget.cool_down is not None and budget.cool_down.until is not None:
        return str(Span("until", budget.cool_down.until))
    unit = f"at step {budget.steps}" if budget.steps is not None else f"after {budget.seconds or 0.0:.1f} s"
    return f"{unit}, where a cool-down ends" if budget.cool_down is not None else unit


BUDGETS = ("num_epochs", "num_steps", "train_duration_seconds", "num_tokens")
"""The arguments of `R8Scheduler` of which one is the budget."""


def has_budget(settings: Mapping[str, Any]) -> bool:
    """Whether one of the arguments for a budget is among these and not None."""
    tokens = getattr(settings.get("batch_size"), "num_tokens", None)
    return tokens is not None or any(settings.get(name) is not None for name in BUDGETS)


def batches_of(num_updates: int, num_batches: int, accumulate: int) -> int:
    """Batches that this many steps of an optimizer take; the last step of an epoch may take fewer.

    >>> batches_of(5, num_batches=7, accumulate=3)
    13
    """
    whole, rest = divmod(num_updates, max(1, -(-num_batches // accumulate)))
    return whole * num_batches + min(rest * accumulate, num_batches)


OPEN_WARMUP = 0.5
"""Progress that stands for the end of the warm-up of an open budget: schedules are functions of progress."""


@dataclass(frozen=True)
class Budget:
    """A number of steps, seconds, tokens or passes, or none: an open budget, whose end is not known yet.

    Attributes:
        steps: Steps to do, or None.
        seconds: Wall time to spend, or None.
        warmup_steps: Steps in which the rate of an open budget rises.
        cool_down: The cool-down that has set the end; None before it was asked for.
        tokens: Tokens to train on, or None.
        passes: Runs through an iterable of the user's, or None.
        steps_per_pass: Steps in each of them as far as known, from which rates follow; None if unknown.
        is_in_epochs: Whether the steps are those of a number of epochs.

    >>> Budget(steps=100, is_in_epochs=True).expected_steps
    100
    >>> Budget(passes=2.5, steps_per_pass=40).expected_steps
    100
    >>> Budget().is_open
    True
    """

    steps: int | None = None
    seconds: float | None = None
    warmup_steps: int = 0
    cool_down: CoolDown | None = None
    tokens: int | None = None
    passes: float | None = None
    steps_per_pass: int | None = None
    is_in_epochs: bool = False

    @functools.cached_property
    def is_open(self) -> bool:
        """Whether the end is not known."""
        return self.steps is None and self.seconds is None and self.tokens is None and self.passes is None

    @property
    def expected_steps(self) -> int | None:
        """Steps to do; of a number of passes those that are expected, as far as that is known; else None."""
        if self.passes is None or self.steps_per_pass is None:
            return self.steps
        return math.ceil(self.passes * self.steps_per_pass)
