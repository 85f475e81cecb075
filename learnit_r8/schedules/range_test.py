"""The LR range test: raise the learning rate until the loss turns up, and stay a safe distance below."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FIRST_LR = 1e-6
LAST_LR = 10.0
SLOWEST_GROWTH = 1.05
LEAST_STEPS = 50
SMOOTHING = 0.15
NUM_FIRST = 8
SAFE_SHARE = 0.1
"""Of the rate at which the loss turned up."""


class SearchFailed(RuntimeError):
    """The search has found no rate, and cannot go on."""


@dataclass
class RangeTest:
    """Search for a learning rate, one training step at a time.

    The rate grows by a constant factor a step from 1e-6, at least 1.05 and as much as reaches 10 within
    ``max_steps``. The search ends when the smoothed loss has turned up, when two losses in a row are refused, or
    at the last step; the result is a tenth of the last rate at which the smoothed loss was within one spread of its
    lowest value. The loss has turned up when it exceeds its lowest value by half of what was gained and four times the
    standard deviation of the first losses, so that neither unit nor zero point of the loss matters.

    Args:
        max_steps: Most steps to take, >= 2.

    Attributes:
        num_steps: Steps taken.
        num_drawn: Batches drawn.
        is_done: Whether the search has ended.

    Source: after the LR range test of Smith, arXiv:1506.01186 (there the rise is linear and the curve is read by
    eye); factor 1.05 and start as in the public prototype of learnit-r8.
    """

    max_steps: int
    num_steps: int = 0
    num_drawn: int = 0
    is_done: bool = False
    _was_refused: bool = False
    _lr_of_lowest: float = FIRST_LR
    _losses: list[float] = field(default_factory=list)
    _smooth: float = math.nan
    _lowest: float = math.inf
    _result: float = math.nan

    def __post_init__(self) -> None:
        # That of a saved state stays as it is.
        self._losses = list(self._losses)

    @property
    def growth(self) -> float:
        """Factor of the rate from one batch to the next."""
        return max(SLOWEST_GROWTH, math.pow(LAST_LR / FIRST_LR, 1 / max(1, self.max_steps - 1)))

    @classmethod
    def for_run(cls, total_steps: int | None) -> RangeTest:
        """A search of at most 10 % of the run's steps, and at least 50."""
        return cls(max(LEAST_STEPS, (total_steps or 0) // 10))

    @property
    def lr(self) -> float:
        """The rate for the next batch drawn."""
        return FIRST_LR * math.exp(math.log(self.growth) * self.num_drawn)

    def draw(self) -> float:
        """`lr`, for one batch."""
        lr = self.lr
        self.num_drawn += 1
        return lr

    @property
    def result(self) -> float:
        """The learning rate found; NaN before, and if the loss never turned up."""
        return self._result

    def take(self, loss: float, lr: float, *, refused: bool) -> bool:
        """Learn from the loss of a batch.

        Args:
            loss: Its mean loss.
            lr: The rate it was drawn with.
            refused: Whether the loss is not one to learn from.

        Returns:
            Whether the model must be put back to where it began: after a refused loss that may be one bad batch.
        """
        self.num_steps += 1
        if refused:
            if self._was_refused or self.num_steps >= self.max_steps:
                self._finish(SAFE_SHARE * self._lr_of_lowest)
                return False
            # The model starts over, and so does the curve.
            self._was_refused = True
            self._smooth, self._lowest = math.nan, math.inf
            return True
        self._was_refused = False
        self._losses.append(loss)
        known = not math.isnan(self._smooth)
        self._smooth = self._smooth + SMOOTHING * (loss - self._smooth) if known else loss
        self._lowest = min(self._lowest, self._smooth)
        if self._smooth <= self._lowest + self._spread:
            self._lr_of_lowest = lr
        gained = max(0.0, float(np.median(self._losses[:NUM_FIRST])) - self._lowest)
        has_turned_up = self._smooth - self._lowest > 0.5 * gained + 4 * self._spread
        if has_turned_up and len(self._losses) > NUM_FIRST:
            self._finish(SAFE_SHARE * self._lr_of_lowest)
        elif self.num_steps >= self.max_steps:
            self._finish(math.nan)
        return False

    def skip(self) -> None:
        """Count a batch that was not reported."""
        self.num_steps += 1
        if self.num_steps >= self.max_steps:
            self._finish(math.nan)

    def _finish(self, result: float) -> None:
        if len(self._losses) < NUM_FIRST:
            raise SearchFailed(
                f"auto_find_lr needs at least {NUM_FIRST} good losses to begin with, got {len(self._losses)} in "
                f"{self.num_steps} steps; give initial_lr instead."
            )
        self._result = result
        self.is_done = True

    @property
    def _spread(self) -> float:
        """Standard deviation of the first losses, at rates too small to matter."""
        return float(np.std(self._losses[:NUM_FIRST]))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: the arguments of the same search."""
        return {**vars(self), "_losses": list(self._losses)}
