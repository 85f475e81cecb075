"""What a guard says of a loss, and what a guard is."""

from __future__ import annotations

import enum
from typing import Any, Protocol


class Verdict(enum.Enum):
    """What becomes of a loss.

    GOOD: it is learned from.
    DRIFT: it is learned from, but the losses have crept up for a while: the learning rate is lowered.
    SKIPPED: it is not finite, but the optimizer's step was skipped, so that nothing was harmed; not learned from, and
    no alarm. Guards never say so, the scheduler does.
    NOT_FINITE, SPIKE, RAISED, LASTING_DRIFT: it is refused, and the model goes back to a backup. RAISED: no loss was
    high enough for a spike, but they stay higher than they were; after two restores in vain it is treated as DRIFT.
    OVERFLOW: likewise, because too many optimizer steps in a row were skipped. The scheduler says so.
    PENDING: an adapter reports late, and it was not judged yet.
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
    """Judges losses. Frozen; what it remembers is the state that `judge` takes and returns, never changed in place.

    It may have a method ``returned(state)``: the state to go on with, given that of the time that the model was put
    back to; and ``informed(state, before)``: likewise, given also the state before the refusal, for what must not be
    forgotten.
    """

    def begin(self) -> Any:
        """The state before the first loss: a number, or a (named) tuple of numbers and of such tuples."""

    def judge(
        self, state: Any, loss: float, expected: float = ..., typical: float = ..., lr: float = ...
    ) -> tuple[Any, Verdict]:
        """Judge one batch loss.

        Args:
            state: Memory of the losses before this one.
            loss: Mean loss of the batch; not finite if that of any sample is not.
            expected: What the table predicted for it, NaN if nothing.
            typical: What the table predicted at the same time for a batch of all kinds of samples, NaN if nothing.
            lr: Learning rate of the schedule, before recovery lowers it; NaN if there is none.

        Returns:
            The state after it, if the model is not put back; and GOOD, DRIFT, NOT_FINITE, SPIKE, RAISED or
            LASTING_DRIFT.
        """

    def suspicion(self, state: Any) -> float:
        """How near the guard is to refusing, from 0 (calm) to 1; backups are taken and proved while it is calm."""
