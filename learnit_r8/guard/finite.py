"""The least a guard must do: keep what is not a number out of the weights and the table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..table.records import LARGEST_LOSS
from .verdict import Verdict


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
    """Refuses NaN, infinities and what float32 cannot hold, from the first step on; accepts everything else.

    >>> FiniteGuard().judge(GuardState(), float("nan"))
    (GuardState(num_judged=1, num_refused=1), <Verdict.NOT_FINITE: 'not finite'>)
    """

    def begin(self) -> GuardState:
        """The state before the first loss."""
        return GuardState()

    def judge(
        self,
        state: GuardState,
        loss: float,
        expected: float = math.nan,
        typical: float = math.nan,
        lr: float = math.nan,
    ) -> tuple[GuardState, Verdict]:
        """Judge one batch loss; see `Guard.judge`. Only the loss itself counts."""
        # A comparison with NaN is false.
        if -LARGEST_LOSS <= loss <= LARGEST_LOSS:
            return GuardState(state[0] + 1, state[1]), Verdict.GOOD
        return GuardState(state[0] + 1, state[1] + 1), Verdict.NOT_FINITE

    def suspicion(self, state: GuardState) -> float:
        """0: it never suspects, it knows."""
        return 0.0
