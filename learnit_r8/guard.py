"""The guard: is this loss one to learn from?"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

LARGEST_LOSS = float(np.finfo(np.float32).max) / 4
"""Losses beyond this overflow the float32 table and count as infinite."""


class Verdict(enum.Enum):
    """What the guard says of a loss; PENDING where an adapter reports late, and the loss was not judged yet."""

    GOOD = "good"
    NOT_FINITE = "not finite"
    PENDING = "pending"


class GuardState(NamedTuple):
    """What the guard remembers between losses.

    Attributes:
        num_judged: Losses judged.
        num_refused: Losses refused.
    """

    num_judged: int = 0
    num_refused: int = 0


class Guard(Protocol):
    """Judges losses. Frozen; what it remembers is the state that `judge` takes and returns."""

    def begin(self) -> Any:
        """The state before the first loss: a named tuple of numbers with at least ``num_refused``."""

    def judge(self, state: Any, loss: float, expected: float = ...) -> tuple[Any, Verdict]:
        """Judge one batch loss; see `FiniteGuard.judge`."""


@dataclass(frozen=True)
class FiniteGuard:
    """Refuses NaN, infinities and what float32 cannot hold, from the first step on; accepts everything else.

    >>> FiniteGuard().judge(GuardState(), float("nan"))
    (GuardState(num_judged=1, num_refused=1), <Verdict.NOT_FINITE: 'not finite'>)
    """

    def begin(self) -> GuardState:
        """The state before the first loss."""
        return GuardState()

    def judge(self, state: GuardState, loss: float, expected: float = float("nan")) -> tuple[GuardState, Verdict]:
        """Judge one batch loss.

        Args:
            state: Memory of the losses before this one.
            loss: Mean loss of the batch; not finite if that of any sample is not.
            expected: What the table predicted for it, NaN if nothing. Rules that judge the surprise need it.

        Returns:
            The next state and the verdict.
        """
        # A comparison with NaN is false.
        if -LARGEST_LOSS <= loss <= LARGEST_LOSS:
            return GuardState(state[0] + 1, state[1]), Verdict.GOOD
        return GuardState(state[0] + 1, state[1] + 1), Verdict.NOT_FINITE
