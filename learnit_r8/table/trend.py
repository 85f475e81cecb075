"""The trend of the batch losses, and the clipping of the first ones, when too few are known for a guard to judge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .early import FirstLosses
from .untrained import UntrainedLoss

NUM_CLIPPED = 80
"""Number of first reports that are clipped if they are far above the others; after as many, the spike guard has its
thresholds."""


class BatchTrend:
    """Moving average of the batch losses; half an epoch long, and a plain mean until then.

    Args:
        num_samples: N, >= 1.
        batch_size: B, >= 1.

    Attributes:
        value: The average; NaN before the first loss.
        weight: Weight of a new loss, once the average is no longer a plain mean.
        num_reports: Losses observed, counted only while `is_early`.
        is_early: Whether the average is still a plain mean, or high losses may still be clipped.
        untrained: The loss of an untrained model.
    """

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.value = math.nan
        self.weight = min(1.0, 2 / (num_samples / (2 * batch_size) + 1))
        self.untrained = UntrainedLoss(-(-num_samples // (20 * batch_size)))
        self.num_reports = 0
        self.is_early = True
        self._num_early = max(self.untrained.size, math.ceil(1 / self.weight), NUM_CLIPPED)
        self._first = FirstLosses()

    def observe_early(self, mean: float, reported: float) -> float:
        """Update the average with one batch loss while `is_early`.

        Args:
            mean: The batch loss, clipped as by `believed`.
            reported: The batch loss before clipping.

        Returns:
            The average before this loss; for the first loss, the loss itself.
        """
        count = self.num_reports = self.num_reports + 1
        before = mean if count == 1 else self.value
        self.value = before + max(self.weight, 1 / count) * (mean - before)
        self.untrained.add(reported)
        self.is_early = count < self._num_early
        return before

    def believed(self, reported: float, means: Any, lowest: float) -> tuple[float, Any, float]:
        """Clip one of the first losses to twice the highest before it, and lower the losses of its samples with it.

        Args:
            reported: The mean loss.
            means: The losses of its parts, float64[P], or the mean.
            lowest: The lowest of them.

        Returns:
            The three, clipped.
        """
        if self.num_reports >= NUM_CLIPPED:
            return reported, means, lowest
        mean = self._first.believed(reported)
        is_scale = self._first.lowest > 0
        self._first = self._first.with_loss(reported)
        if mean == reported:
            return reported, means, lowest
        if is_scale:
            factor = mean / reported
            return mean, means * factor, lowest * factor
        above = reported - mean
        return mean, means - above, lowest - above

    def state_dict(self) -> dict[str, Any]:
        """The state apart from ``value`` and ``num_reports``."""
        *first, recent = self._first
        return {"first": [*first, list(recent)], "untrained": self.untrained.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, value: float, num_reports: int) -> None:
        """Load what `state_dict` returned."""
        self.value, self.num_reports = value, num_reports
        self.is_early = num_reports < self._num_early
        known, lowest, highest, second, recent = state["first"]
        self._first = FirstLosses(known, lowest, highest, second, tuple(recent))
        self.untrained.load_state_dict(state["untrained"])
