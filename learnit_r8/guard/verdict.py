"""The verdicts on a loss, the interface of guards, and the least that a guard must do."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ..table.records import LARGEST_LOSS


class Verdict(enum.Enum):
    """What happens with a loss.

    GOOD: it is learned from.
    SKIPPED: it is not finite, but the optimizer's step was skipped, so no weight was harmed; it is neither learned from
    nor refused. For NaN the weights are looked at, and the samples are suspects. Given by the scheduler, never by a
    guard.
    NOT_FINITE, SPIKE, RAISED, LASTING_DRIFT: it is refused. RAISED: no loss was high enough for a spike, but losses
    stay higher than they were.
    OVERFLOW: it is refused, as too many optimizer steps in a row were skipped. Given by the scheduler.
    GRADIENT: it is refused, as its gradient is not finite, or far longer than all before. Given by the scheduler.
    EARLY: it is high for one of the first steps, and looked into; its batch comes again at the end of the epoch, or is
    refused where the loss is far too high. Given by the scheduler.
    PROBED: the batch was drawn again to test weights; it is not learned from. Given by the scheduler.
    PENDING: it was reported to an adapter that judges late, and has not been judged yet.
    """

    GOOD = "good"
    SKIPPED = "skipped"
    NOT_FINITE = "not finite"
    SPIKE = "spike"
    RAISED = "raised"
    LASTING_DRIFT = "lasting drift"
    OVERFLOW = "overflow"
    GRADIENT = "gradient"
    EARLY = "early"
    PROBED = "probed"
    PENDING = "pending"


GOOD = Verdict.GOOD
"""For what runs at every step: CPython 3.11 takes ten times as long to read a member of an Enum as a global."""


class Guard(Protocol):
    """Judges losses. A guard is immutable: `judge` takes and returns its state, and never changes it in place.

    Two things are optional. ``calmed(state)`` gives the state without the evidence gathered so far, as the weights were
    found healthy. ``tests_progress`` says whether recovery may look into losses of the first steps that rise.
    """

    def begin(self) -> Any:
        """The state before the first loss: a number, or a (named) tuple of numbers and of such tuples."""

    def judge(
        self, state: Any, loss: float, expected: float = ..., typical: float = ..., lr: float = ...
    ) -> tuple[Any, Verdict]:
        """Judge one batch loss.

        Args:
            state: The state after the losses before this one.
            loss: Mean loss of the batch; not finite if the loss of any sample is not.
            expected: The table's prediction for this batch; NaN if it has none.
            typical: The table's prediction, made at the same time, for an average batch; NaN if it has none.
            lr: Learning rate of the schedule, before recovery lowers it; NaN if there is none.

        Returns:
            The state to continue with if the loss is learned from; and GOOD, NOT_FINITE, SPIKE, RAISED or
            LASTING_DRIFT.
        """

    def suspicion(self, state: Any) -> float:
        """How close the guard is to refusing, from 0 (calm) to 1; backups are taken and confirmed only while calm."""


class GuardState(NamedTuple):
    """What `FiniteGuard` remembers between losses.

    Attributes:
        num_judged: Losses judged.
        num_refused: Losses refused.
    """

    num_judged: int = 0
    num_refused: int = 0


@dataclass(frozen=True)
class FiniteGuard:
    """Refuses NaN, infinities and values too large for float32, from the first step on; accepts everything else.

    >>> FiniteGuard().judge(GuardState(), float("nan"))
    (GuardState(num_judged=1, num_refused=1), <Verdict.NOT_FINITE: 'not finite'>)
    """

    def begin(self) -> GuardState:
        """The state before the first loss."""
        return GuardState()

    def judge(
        self, state: GuardState, loss: float, expected: float = math.nan, typical: float = math.nan,
        lr: float = math.nan,
    ) -> tuple[GuardState, Verdict]:  # fmt: skip
        """Judge one batch loss; see `Guard.judge`. Only the loss itself counts."""
        # A comparison with NaN is false.
        if -LARGEST_LOSS <= loss <= LARGEST_LOSS:
            return GuardState(state[0] + 1, state[1]), GOOD
        return GuardState(state[0] + 1, state[1] + 1), Verdict.NOT_FINITE

    def suspicion(self, state: GuardState) -> float:
        """Always 0: each loss is judged on its own, so no suspicion builds up."""
        return 0.0
