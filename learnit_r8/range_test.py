"""The LR range test: raise the learning rate until the loss turns up, and stay a safe distance below."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

FIRST_LR = 1e-6
LAST_LR = 10.0
SLOWEST_GROWTH = 1.05
LEAST_STEPS = 50
SMOOTHING = 0.15
NUM_FIRST = 8
SAFE_SHARE = 0.1
"""Of the rate at which the loss turned up."""


class RangeTest:
    """Search for a learning rate, one training step at a time.

    The rate grows by a constant factor a step from 1e-6, at least 1.05 and as much as reaches 10 within
    ``max_steps``. The search ends when a loss is refused, when the smoothed loss has turned up, or at the last
    step; the result is a tenth of the rate reached. Turned up means: above its lowest value by more than half of
    what was gained and four times the spread of the first losses, which moves and scales with the loss.

    Args:
        max_steps: Most steps to take, >= 2.

    Attributes:
        num_steps: Steps taken.

    Source: after the LR range test of Smith, arXiv:1506.01186 (there the rise is linear and the curve is read by
    eye); factor 1.05 and start as in the public prototype of learnit-r8.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self.growth = max(SLOWEST_GROWTH, (LAST_LR / FIRST_LR) ** (1 / max(1, max_steps - 1)))
        self.num_steps = 0
        self._losses: list[float] = []
        self._smooth = math.nan
        self._lowest = math.inf
        self._result = math.nan

    @classmethod
    def for_run(cls, total_steps: int | None) -> RangeTest:
        """A search of at most 10 % of the run's steps, and at least 50."""
        return cls(max(LEAST_STEPS, (total_steps or 0) // 10))

    @property
    def lr(self) -> float:
        """The rate for the next step."""
        return FIRST_LR * math.exp(math.log(self.growth) * self.num_steps)

    @property
    def is_done(self) -> bool:
        """Whether `result` is known."""
        return not math.isnan(self._result)

    @property
    def result(self) -> float:
        """The learning rate found; NaN until the search is done."""
        return self._result

    def take(self, loss: float, *, refused: bool) -> None:
        """Learn from the loss of a step taken with `lr`."""
        reached = self.lr
        self.num_steps += 1
        if not refused:
            self._losses.append(loss)
            known = not math.isnan(self._smooth)
            self._smooth = self._smooth + SMOOTHING * (loss - self._smooth) if known else loss
            self._lowest = min(self._lowest, self._smooth)
        if refused or self._has_turned_up() or self.num_steps >= self.max_steps:
            self._finish(reached)

    def skip(self) -> None:
        """Count a step whose loss was not reported."""
        reached = self.lr
        self.num_steps += 1
        if self.num_steps >= self.max_steps:
            self._finish(reached)

    def _finish(self, reached: float) -> None:
        if len(self._losses) < NUM_FIRST:
            raise RuntimeError(
                f"auto_find_lr needs at least {NUM_FIRST} good losses to begin with, got {len(self._losses)} in "
                f"{self.num_steps} steps; give initial_lr instead."
            )
        self._result = SAFE_SHARE * reached

    def _has_turned_up(self) -> bool:
        first = self._losses[:NUM_FIRST]
        if len(self._losses) <= len(first):
            return False
        gained = max(0.0, statistics.median(first) - self._lowest)
        return self._smooth - self._lowest > 0.5 * gained + 4 * statistics.pstdev(first)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "max_steps": self.max_steps,
            "num_steps": self.num_steps,
            "losses": list(self._losses),
            "smooth": self._smooth,
            "lowest": self._lowest,
            "result": self._result,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RangeTest:
        """The search that `state_dict` was taken of."""
        test = cls(state["max_steps"])
        test.num_steps = state["num_steps"]
        test._losses = list(state["losses"])
        test._smooth, test._lowest, test._result = state["smooth"], state["lowest"], state["result"]
        return test
