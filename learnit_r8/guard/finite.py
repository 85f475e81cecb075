"""The finite guard, the least a guard must do: keep non-finite losses out of the weights and the table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..table.records import LARGEST_LOSS
from .verdict import GOOD, Verdict


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
            return GuardState(state[0] + 1, state[1]), GOOD
        return GuardState(state[0] + 1, state[1] + 1), Verdict.NOT_FINITE

    def suspicion(self, state: GuardState) -> float:
        """Always 0: each loss is judged on its own, so no suspicion builds up."""
        return 0.0
