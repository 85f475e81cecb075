"""The trend of the batch losses, and the clipping of the first ones, when too few are known for a guard to judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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
    middle = median(sorted(losses))
    deviation = 1.4826 * median(sorted(abs(loss - middle) for loss in losses))
    bound = middle + OUTLYING * max(deviation, LEAST_SPREAD * abs(middle))
    usual = [loss for loss in losses[:count] if loss <= bound]
    return sum(usual) / len(usual) if usual else middle


def median(ordered: Sequence[float]) -> float:
    """Median of sorted values, of which there is at least one."""
    # The first call of np.median() imports modules for 20 ms, during a step.
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


NEAR = 0.5
"""Share of the loss of the untrained model above which little was learned."""


def lowest_median(losses: Sequence[float], size: int) -> float:
    """Lowest median of blocks of this size.

    >>> lowest_median([3.0, 0.0, 3.0, 2.0, 2.0, 9.0], size=3)
    2.0
    """
    return min(median(sorted(losses[start : start + size])) for start in range(0, len(losses), size))


LAST, WIDTHS, BY_CHANCE = 64, (1, 8, 16, 32, 64), 6.0
"""Losses in which a rise is looked for, updates that it may take, and by how many variances of a loss a ramp may fit
better than a step by chance."""


def rises_slowly(losses: Sequence[float], *, by_chance: float = BY_CHANCE) -> bool:
    """Whether the last losses have risen over many updates, and not from one to the next.

    A rise is a ramp between two levels. The squares of what is left of the best ramp are compared with those of the
    best step.

    Args:
        losses: The losses, oldest first.
        by_chance: By how many variances of a loss the ramp must be better; where noise hides that, it is a step.

    >>> usual = [1.0, 1.1] * 20
    >>> rises_slowly(usual + [2.0, 2.1] * 8), rises_slowly(usual + [1.1 + 0.1 * n for n in range(16)])
    (False, True)
    """
    last = np.asarray(list(losses)[-LAST:])
    last = last - last.mean()
    places = np.arange(len(last))
    gains = []
    for width in WIDTHS:
        ramps = np.clip((places - places[:-1, None]) / width, 0.0, 1.0)
        ramps -= ramps.mean(axis=1, keepdims=True)
        found = np.maximum(ramps @ last, 0.0) ** 2 / np.einsum("ij,ij->i", ramps, ramps)
        gains.append(found.max(initial=0.0))
    step, ramp = gains[0], max(gains[1:])
    return bool(ramp - step > by_chance * (last @ last - ramp) / max(1, len(last)))


LEAST_JUDGED = 8
"""Losses that must be known before one is refused."""

LEAST_CLIPPED = 3
"""Losses that must be known before one is clipped."""

ABSURD, HIGH, BELIEVED = 100.0, 3.0, 2.0
"""Multiples of the highest loss before: from which a loss is refused at once; from which three of four losses are; and
to which a single loss is clipped."""

ALONE = 10.0
"""Multiple of the second highest loss to which the highest is clipped, so that one outlier does not hide later ones."""

RECENT = 4
"""Number of last losses among which high ones are counted."""


def is_far_below(loss: float, known: Sequence[float]) -> bool:
    """Whether a loss is out of range below zero, as a cross entropy of targets out of range is.

    Nearly all earlier ones were positive, and it is a hundred times as far below zero as the highest of them is above.
    Less is healthy: another task whose loss is a likelihood may come in every fortieth batch, far below the others.

    >>> [is_far_below(loss, [2.0, 1.0, 1.5] * 3) for loss in (-190.0, -210.0)]
    [False, True]
    """
    if len(known) < LEAST_JUDGED:
        return False
    ordered = sorted(known)
    return ordered[len(ordered) // 16] > 0 and loss < -ABSURD * ordered[-1]


class FirstLosses(NamedTuple):
    """Statistics of the first losses of a run.

    Attributes:
        known: Number of losses so far.
        lowest: The lowest of them.
        highest: The highest except for the last four.
        second: The second highest except for those.
        recent: The last four, oldest first.
    """

    known: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    second: float = -math.inf
    recent: tuple[float, ...] = ()

    def times(self, factor: float, highest: float, second: float) -> float:
        """The limit that is ``factor`` times as high as the highest loss; infinite while all losses are equal.

        For losses that may be negative, the range of the losses replaces the distance from 0.

        Args:
            factor: Multiple of the highest loss.
            highest: The highest loss.
            second: The second highest, which limits how far the highest counts.

        >>> FirstLosses(lowest=1.0).times(3.0, 2.0, 1.5)
        6.0
        >>> FirstLosses(lowest=-3.0).times(3.0, -2.0, -2.0)
        0.0
        """
        if not self.lowest < highest:
            return math.inf
        if self.lowest < second:
            highest = min(highest, self._above(second, ALONE))
        return self._above(highest, factor)

    def _above(self, loss: float, factor: float) -> float:
        return loss + (factor - 1) * (loss if self.lowest > 0 else max(loss - self.lowest, loss))

    def _times_all(self, factor: float) -> float:
        second, highest = sorted((self.second, self.highest, *self.recent))[-2:]
        return self.times(factor, highest, second)

    def believed(self, loss: float) -> float:
        """Clip a loss to twice the highest before it."""
        return min(loss, self._times_all(BELIEVED)) if self.known >= LEAST_CLIPPED else loss

    def with_loss(self, loss: float) -> FirstLosses:
        """The statistics with one more finite loss."""
        recent, highest, second = (*self.recent, loss), self.highest, self.second
        if len(recent) > RECENT:
            second, highest = sorted((second, highest, recent[0]))[1:]
        return FirstLosses(self.known + 1, min(self.lowest, loss), highest, second, recent[-RECENT:])

    def refuses(self, loss: float) -> bool:
        """Whether a loss shows that the weights are damaged: absurdly high, or the third high one of four.

        >>> known = FirstLosses(known=8, lowest=1.0, highest=1.0, second=1.0, recent=(1.0,) * 4)
        >>> known.refuses(99.0), known.refuses(101.0)
        (False, True)
        >>> known = FirstLosses()
        >>> for each in (2.0, 1.0, 1.5, 1.8) * 3:
        ...     known = known.with_loss(each)
        >>> known.refuses(250.0), known.refuses(90.0)
        (True, False)
        >>> known.with_loss(9.0).with_loss(8.0).refuses(7.0)
        True
        """
        if self.known < LEAST_JUDGED:
            return False
        limit = self._times_all(ABSURD)
        if limit == math.inf and self.lowest:
            # All losses are equal, so that their distance from 0 is the only scale; of 0 there is none.
            limit = self.lowest + (ABSURD - 1) * abs(self.lowest)
        if loss > limit:
            return True
        high = self.times(HIGH, self.highest, self.second)
        return loss > high and sum(each > high for each in self.recent[1 - RECENT :]) >= 2


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
        self.weight = min(1.0, 2 / (num_samples / (2 * batch_size) + 1))
        self._num_untrained = -(-num_samples // (20 * batch_size))
        self.begin_anew()
        self._num_early = max(self.untrained.size, math.ceil(1 / self.weight), NUM_CLIPPED)

    def begin_anew(self) -> None:
        """Forget all losses."""
        self.value = math.nan
        self.untrained = UntrainedLoss(self._num_untrained)
        self.num_reports = 0
        self.is_early = True
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
