"""The trend of the batch losses, and what the first of them tell while too few are known for a guard to judge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .early import FirstLosses
from .losses import Reading
from .untrained import UntrainedLoss

NUM_CLIPPED = 80
"""First reports of a run of which none is believed whole if it is far beyond the others; the spike guard has its
thresholds after as many."""


class BatchTrend:
    """Moving average of the batch losses; half an epoch long, and a plain mean until then.

    Args:
        num_samples: N, >= 1.
        batch_size: B, >= 1.

    Attributes:
        value: The average; NaN before the first loss.
        weight: Of a new loss, once the average is no plain mean any more.
        num_reports: Losses observed, counted while any of these is still needed.
        is_early: Whether the average is a plain mean still, or a high loss may be believed in part only.
        untrained: What a model that has learnt nothing loses.
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
        """Move on by one batch loss while `is_early`.

        Args:
            mean: As far as it is `believed`.
            reported: All of it.

        Returns:
            The average before this loss; the loss itself, for the first one.
        """
        count = self.num_reports = self.num_reports + 1
        before = mean if count == 1 else self.value
        self.value = before + max(self.weight, 1 / count) * (mean - before)
        self.untrained.add(reported)
        self.is_early = count < self._num_early
        return before

    def believed(self, reading: Reading) -> Reading:
        """The part of a reported loss to learn from.

        One that is more than twice as high as the highest before it counts as twice that, and the losses of its
        samples are lowered with it.
        """
        if self.num_reports >= NUM_CLIPPED:
            return reading
        mean = self._first.believed(reading.mean)
        is_scale = self._first.lowest > 0
        self._first = self._first.with_loss(reading.mean)
        if mean == reading.mean:
            return reading
        if is_scale:
            factor = mean / reading.mean
            return Reading(mean, reading.means * factor, reading.part_size, reading.lowest * factor)
        above = reading.mean - mean
        return Reading(mean, reading.means - above, reading.part_size, reading.lowest - above)

    @property
    def early_mark(self) -> Any:
        """What is known of the first losses only, for `undo`; None later."""
        return (self._first, self.untrained.mark) if self.is_early else None

    def undo(self, num_reports: int, value: float, early_mark: Any) -> None:
        """Forget the last loss, if any was observed since these were noted."""
        self.num_reports, self.value = num_reports, value
        if early_mark is not None:
            self.is_early = True
            self._first, untrained = early_mark
            self.untrained.go_back_to(untrained)

    def state_dict(self) -> dict[str, Any]:
        """What is known besides ``value`` and ``num_reports``."""
        *first, recent = self._first
        return {"first": [*first, list(recent)], "untrained": self.untrained.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, value: float, num_reports: int) -> None:
        """Take over what `state_dict` returned; version 0.1 knew the mean of its first losses only."""
        self.value, self.num_reports = value, num_reports
        self.is_early = num_reports < self._num_early
        known, lowest, highest, second, recent = state.get("first", FirstLosses())
        self._first = FirstLosses(known, lowest, highest, second, tuple(recent))
        untrained = {"value": state["numbers"].get("untrained_loss"), "losses": []}
        self.untrained.load_state_dict(state.get("untrained", untrained))
