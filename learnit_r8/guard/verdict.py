"""The verdicts on a loss, and the interface of guards."""

from __future__ import annotations

import enum
from typing import Any, Protocol


class Verdict(enum.Enum):
    """What happens with a loss.

    GOOD: it is learned from.
    DRIFT: it is learned from, but losses have risen slowly for a while, so the learning rate is lowered.
    SKIPPED: it is not finite, but the optimizer's step was skipped, so no weight was harmed; it is neither learned from
    nor refused. Given by the scheduler, never by a guard.
    NOT_FINITE, SPIKE, RAISED, LASTING_DRIFT: it is refused, and the model is restored from a backup. RAISED: no loss
    was high enough for a spike, but losses stay higher than they were; after two restores in vain it counts as DRIFT.
    OVERFLOW: it is refused in the same way, as too many optimizer steps in a row were skipped. Given by the scheduler.
    PENDING: it was reported to an adapter that judges late, and has not been judged yet.
    """

    GOOD = "good"
    DRIFT = "drift"
    SKIPPED = "skipped"
    NOT_FINITE = "not finite"
    SPIKE = "spike"
    RAISED = "raised"
    LASTING_DRIFT = "lasting drift"
    OVERFLOW = "overflow"
    PENDING = "pending"


class Guard(Protocol):
    """Judges losses. A guard is immutable: `judge` takes and returns its state, and never changes it in place.

    Two methods are optional. ``returned(state)`` gives the state to continue with after the model was restored, from
    the state at the time of the backup. ``informed(state, before)`` does the same, and also gets the state before the
    refusal, for what must not be forgotten.
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
            The state to continue with unless the model is restored; and GOOD, DRIFT, NOT_FINITE, SPIKE, RAISED or
            LASTING_DRIFT.
        """

    def suspicion(self, state: Any) -> float:
        """How near the guard is to refusing, from 0 (calm) to 1; backups are taken and confirmed only while calm."""
