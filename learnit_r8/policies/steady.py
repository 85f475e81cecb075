"""Steady batches: only low-loss samples, to stabilize training after a refused loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Candidates, Context, Kept, Order, Policy
from .radix import order_of
from .ranking import by_loss


@dataclass(frozen=True)
class Steady(Policy):
    """Only the quarter of the seen samples with the lowest loss (Q1), least used first.

    Recovery uses it to stabilize training after a refused loss. If fewer samples than a batch were seen, as after an
    epoch of refused losses, a pass takes every sample.

    Source: the prototype of learnit-r8.
    """

    name = "steady"
    uses_groups = False
    is_random = False

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        seen = int((chunk.usage_count > 0).sum())
        if seen < context.batch_size and context.pass_number >= 0:
            return np.ones(len(chunk.indices), bool), None
        lowest = by_loss(np.where(np.isnan(chunk.loss), np.float32(np.inf), chunk.loss))
        keep = np.zeros(len(chunk.indices), bool)
        keep[lowest[: min(seen, max(seen // 4, context.batch_size))]] = True
        return keep, None

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        return order_of(chunk.usage_count)
