"""Mean matching: swaps samples between batches until each batch's mean loss is near that of the chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .._validation import is_number, whole_number
from .base import Around, Candidates, Order, Policy
from .radix import keys_of, order_of
from .ranking import fill_in
from .shuffle import Shuffle


@dataclass(frozen=True)
class MatchMean(Around):
    """Another policy's batches, with samples swapped until each batch's mean loss is near that of the chunk.

    In every round the batches are paired from both ends of their ranking by mean loss. A pair swaps the highest loss
    of one for the lowest of the other if that reduces the larger of their two gaps.

    Args:
        inner: The policy that proposes the batches.
        tolerance: Accepted gap between batch mean and chunk mean, relative to the latter, > 0.
        max_swaps: Rounds, >= 0.

    Raises:
        ValueError: the tolerance or the number of rounds is outside its range.

    Source: the prototype of learnit-r8.
    """

    inner: Policy = field(default_factory=Shuffle)
    tolerance: float = 0.1
    max_swaps: int = 5

    name = "match_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.tolerance) and self.tolerance > 0):
            raise ValueError(f"tolerance must be > 0, got {self.tolerance!r}.")
        whole_number("max_swaps", self.max_swaps, least=0)

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        return self.inner.is_random

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        order: Order = self.inner.arrange(chunk, batch_size, rng).copy()
        loss = fill_in(chunk.loss).astype(np.float64)
        target = loss.mean()
        rows = len(order) // batch_size
        batches = order[: rows * batch_size].reshape(rows, batch_size)
        for _ in range(self.max_swaps):
            if not _swap_extremes(batches, loss, target, self.tolerance * abs(target)):
                break
        return order


def _swap_extremes(batches: Order, loss: NDArray[np.float64], target: float, tolerance: float) -> bool:
    """Swap one sample between batches paired from both ends of their ranking by mean loss; False if none swapped."""
    values = loss[batches]
    gap = values.mean(axis=1) - target
    # Zeros of either sign are equal, and NaN comes last.
    ranked = order_of(keys_of(np.where(np.isnan(gap), np.nan, gap + 0.0)))
    low, high = ranked[: len(ranked) // 2], ranked[::-1][: len(ranked) // 2]
    top, bottom = values[high].argmax(axis=1), values[low].argmin(axis=1)
    moved = (values[high, top] - values[low, bottom]) / batches.shape[1]
    before = np.maximum(np.abs(gap[high]), np.abs(gap[low]))
    after = np.maximum(np.abs(gap[high] - moved), np.abs(gap[low] + moved))
    better = (before > tolerance) & (after < before)
    high, low, top, bottom = high[better], low[better], top[better], bottom[better]
    batches[high, top], batches[low, bottom] = batches[low, bottom], batches[high, top]
    return bool(len(high))
