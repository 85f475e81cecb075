"""The loss of an untrained model, estimated from the first losses of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST_LOSSES = 8
"""Least number of losses from which outliers are recognized."""

MOST_LOSSES = 1024
"""Most losses that are averaged; after this many steps a model has learnt something in any case."""

OUTLYING, LEAST_SPREAD = 5.0, 0.05
"""Standard deviations above the median from which a loss is left out, and the least standard deviation as a share of
the median."""


class UntrainedLoss:
    """Mean of the first losses without outliers, so that one bad batch does not decide what "worse than untrained" is.

    The mean is over 5 % of an epoch, at least two losses. Once at least eight losses are known, outliers are removed
    and the value is final; before that it is the mean of the losses so far.

    Args:
        size: Number of losses to average; at least two are.

    Attributes:
        size: Number of losses after which the value is final.
        value: The estimate; NaN before the first loss.
    """

    def __init__(self, size: int) -> None:
        self._num_averaged = min(max(2, size), MOST_LOSSES)
        self.size = max(self._num_averaged, LEAST_LOSSES)
        self.value = float("nan")
        self._losses: list[float] = []
        self._total = 0.0
        self._is_settled = False

    def add(self, loss: float) -> None:
        """Take one more loss into account, unless the value is final."""
        if self._is_settled:
            return
        losses = self._losses
        losses.append(loss)
        self._total += loss
        if len(losses) <= self._num_averaged:
            self.value = self._total / len(losses)
        if len(losses) >= self.size:
            self.value = mean_of_usual(losses, self._num_averaged)
            self._is_settled = True
            self._losses = []

    def state_dict(self) -> dict[str, Any]:
        """The estimate, and until it is final the losses so far."""
        return {"value": self.value, "losses": list(self._losses), "is_settled": self._is_settled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.value = float(state["value"])
        self._losses = [float(loss) for loss in state["losses"]]
        self._total = sum(self._losses)
        self._is_settled = bool(state["is_settled"])


def mean_of_usual(losses: list[float], count: int) -> float:
    """Mean of the first ``count`` losses without those that are far above the median of all.

    >>> mean_of_usual([2.0, 1000.0, 2.2, 1.8, 2.0, 2.1, 1.9, 2.0], count=3)
    2.1
    """
    middle = _median(losses)
    deviation = 1.4826 * _median([abs(loss - middle) for loss in losses])
    bound = middle + OUTLYING * max(deviation, LEAST_SPREAD * abs(middle))
    usual = [loss for loss in losses[:count] if loss <= bound]
    return sum(usual) / len(usual) if usual else middle


def _median(values: list[float]) -> float:
    # The first call of np.median() imports modules for 20 ms, during a step.
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
