"""The learner: how reported losses change what is known of the samples; and who holds reports back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._validation import check_share
from .losses import EXACT, WHOLE_BATCH
from .records import LARGEST_LOSS, count_use

if TYPE_CHECKING:
    from .storage import SampleStorage


Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SHARE_RANGE = (1e-4, 50.0)
"""Bounds of a sample's loss relative to the trend, so that one unusual batch cannot decide a sample's estimate."""

FACTOR_RANGE = (0.1, 10.0)
"""Bounds of one correction."""


MOST_LEAK = 0.0075
"""Largest fraction by which a share moves back towards 1 before a correction."""

LEAST_WORTH = 64
"""Least number of samples from which `worth` is measured."""


def leak_of(part_size: int) -> float:
    """Fraction by which a share moves back towards 1 before a correction: less for small parts, which are more exact.

    Args:
        part_size: Samples of one reported mean, >= 1.

    Returns:
        In (0, 0.0075]. Tuned on seeds 0 to 7 of the recipe in benchmarks/recipe.py, confirmed on 100 to 107.
    """
    return min(MOST_LEAK, part_size / 1600)


def part_means(values: Floats, sizes: NDArray[np.int64]) -> Doubles:
    """Mean of consecutive parts, accumulated in float64 so that the order of summation hardly matters.

    Args:
        values: float32[M].
        sizes: int64[P], each >= 1, their sum M.

    Returns:
        float64[P].

    >>> part_means(np.float32([1, 3, 5]), np.array([2, 1]))
    array([2., 5.])
    """
    starts = np.cumsum(sizes) - sizes
    means: Doubles = np.add.reduceat(values.astype(np.float64), starts) / sizes
    return means


def moving_average(estimate: Floats, observed: Floats, count: Floats, alpha: float) -> Floats:
    """Move each estimate towards its own observed loss: ``estimate + max(alpha, 1 / count) * (observed - estimate)``.

    Args:
        estimate: float32[M]; the value of a sample seen for the first time does not matter.
        observed: float32[M], losses of single samples.
        count: float32[M], observations including this one, >= 1: the average starts as a plain mean.
        alpha: Weight of the new observation, in (0, 1].

    Returns:
        float32[M].

    >>> moving_average(np.float32([0, 2]), np.float32([5, 4]), np.float32([1, 9]), alpha=0.5)
    array([5., 3.], dtype=float32)
    """
    weight = np.maximum(np.float32(alpha), np.float32(1) / count)
    first = np.where(count == 1, np.float32(0), estimate)
    moved: Floats = first + weight * (observed - first)
    return moved


def additive(
    estimate: Floats, seen: NDArray[np.bool_], means: Doubles, sizes: NDArray[np.int64], alpha: float
) -> Floats:
    """Move every estimate of a part by the same share of the part's surprise: the additive rule.

    ``estimate + alpha * (mean - mean(estimate))``; an unseen sample takes the observed mean, and the expected value is
    the mean over the others.

    Args:
        estimate: float32[M], consecutive parts.
        seen: bool[M], whether each sample was seen, so that its estimate is valid.
        means: float64[P], observed mean loss of each part.
        sizes: int64[P], samples of each part.
        alpha: Weight of the new observation, in (0, 1].

    Returns:
        float32[M].

    Source: the prototype of learnit-r8.

    >>> additive(np.float32([1, 3]), np.array([True, True]), np.array([4.0]), np.array([2]), alpha=0.5)
    array([2., 4.], dtype=float32)
    """
    known = part_means(seen.astype(np.float32), sizes)
    total = part_means(np.where(seen, estimate, np.float32(0)), sizes)
    expected = np.divide(total, known, out=means.astype(np.float64, copy=True), where=known > 0)
    moved = estimate + np.repeat((alpha * (means - expected)).astype(np.float32), sizes)
    result: Floats = np.where(seen, moved, np.repeat(means.astype(np.float32), sizes))
    return result


def relative(
    share: Floats, means: Doubles, trend: Doubles, sizes: NDArray[np.int64], *, leak: float = MOST_LEAK
) -> Floats:
    """Multiply every share of a part by the ratio of the part's observed to its expected loss.

    With the trend ``g`` of the loss: first ``share += leak * (1 - share)``, then
    ``share *= clip((mean / g) / mean(share), 0.1, 10)``, kept in [1e-4, 50]. The estimate of a loss is ``share * g``.
    The leak corrects shares that became extreme early, while the losses were still changing quickly.

    Args:
        share: float32[M], loss relative to the trend; 1 for an unseen sample.
        means: float64[P], observed mean loss of each part, >= 0.
        trend: float64[P], the trend before each part was observed, >= 0.
        sizes: int64[P], samples of each part.
        leak: Fraction by which a share first moves back to 1, in [0, 1]; see `leak_of`.

    Returns:
        float32[M].

    Source: the multiplicative algebraic reconstruction technique of Gordon, Bender & Herman (1970) on the detrended
    loss, with the fixed share of Herbster & Warmuth (1998); measured in benchmarks/estimators.py.

    >>> relative(np.float32([1, 1]), np.array([4.0]), np.array([2.0]), np.array([2]))
    array([2., 2.], dtype=float32)
    """
    leaked = share + np.float32(leak) * (np.float32(1) - share)
    expected = np.maximum(part_means(leaked, sizes), 1e-6)
    factor = np.clip(means / np.maximum(trend, 1e-30) / expected, *FACTOR_RANGE).astype(np.float32)
    result: Floats = np.clip(leaked * np.repeat(factor, sizes), np.float32(SHARE_RANGE[0]), np.float32(SHARE_RANGE[1]))
    return result


def offset(estimate: Floats, means: Doubles, trend: Doubles, sizes: NDArray[np.int64]) -> Floats:
    """The form of `relative` for losses that may be negative: differences from the trend in place of ratios.

    ``estimate + (mean - g) - mean(estimate)``; the estimate of a loss is ``estimate + g``.

    Args:
        estimate: float32[M], loss minus trend; 0 for an unseen sample.
        means: float64[P], observed mean loss of each part.
        trend: float64[P], the trend before each part was observed.
        sizes: int64[P], samples of each part.

    Returns:
        float32[M].

    >>> offset(np.float32([0, 1]), np.array([-1.0]), np.array([-2.0]), np.array([2]))
    array([0.5, 1.5], dtype=float32)
    """
    surprise = means - trend - part_means(estimate, sizes)
    moved: Floats = estimate + np.repeat(surprise.astype(np.float32), sizes)
    return moved


class ReportHolder(Protocol):
    """Holds back reports that the table has not learned from yet."""

    def hand_over(self) -> None:
        """Let the table learn from all of them, as it is about to be read."""

    def use_offsets(self, trend: float) -> None:
        """Turn the holder's own predictions into differences from the trend, as the estimates are about to be.

        Args:
            trend: The current trend.
        """


EXACT_ALPHA, ADDITIVE_ALPHA = 0.5, 0.1
"""Default weights of a new observation, for the loss of a sample and for the mean of a batch."""


class LossLearner:
    """Updates the records of samples when their reports are handed over.

    Args:
        storage: What it learns into.
        alpha: Weight of a new observation, in (0, 1]; by default 0.5 for per-sample losses and 0.1 for "additive".
            "relative" does not use it.

    Raises:
        ValueError: alpha is outside (0, 1].
    """

    def __init__(self, storage: SampleStorage, *, alpha: float | None = None) -> None:
        check_share("alpha", 1 if alpha is None else alpha, has_zero=False)
        self.storage = storage
        self.alpha = alpha
        self._holder: ReportHolder | None = None

    def hold_back(self, holder: ReportHolder) -> None:
        """Register ``holder`` to hand over its reports before the table is read; it replaces the previous one."""
        self._holder = holder

    def hand_over(self) -> None:
        """Learn from all reports held back."""
        if self._holder is not None:
            self._holder.hand_over()

    @property
    def trend_mark(self) -> tuple[float, bool]:
        """The trend, for `go_back_to`."""
        return self.storage.batch_trend.value, self.storage.are_offsets

    def go_back_to(self, trend_mark: tuple[float, bool]) -> None:
        """Return to an earlier trend, unless the estimates have switched to differences since.

        Back before the first loss the trend begins anew, as a first loss that was beyond all others is all of it.
        """
        trend, offsets = trend_mark
        if math.isnan(trend):
            self.storage.batch_trend.begin_anew()
        elif offsets == self.storage.are_offsets:
            self.storage.batch_trend.value = trend

    def use_offsets(self) -> None:
        """Have the "relative" estimator hold differences from the trend for good, as a loss is below 0."""
        self.hand_over()
        storage = self.storage
        if not (storage.is_relative and (storage.batch_trend.num_reports or storage.num_seen)):
            storage.are_offsets = True
            return
        trend = storage.batch_trend.value if storage.batch_trend.num_reports else 0.0
        with storage.lock:
            storage.is_whole = False
            # Slice by slice: what is as large as the table would first have to be found by the system.
            for _, known in storage.records.slices():
                estimate = known["loss"]
                seen = np.where(known["usage_count"] > 0, estimate - np.float32(1), estimate)
                np.multiply(seen, np.float32(trend), out=estimate)
            if self._holder is not None:
                self._holder.use_offsets(trend)
            storage.are_offsets = True
            storage.is_whole = True

    def expected(self, records: NDArray[Any], sizes: NDArray[np.int64], weights: Floats | None = None) -> list[float]:
        """Mean stored estimate of consecutive batches over the samples already seen, without the trend.

        Args:
            records: RECORD[M].
            sizes: int64[P], samples of each batch, their sum M.
            weights: float32[M], weights of the losses, or None.

        Returns:
            P floats, for `with_trend`; NaN for a batch of unseen samples.
        """
        values, counts = records["loss"], weights
        if self.storage.num_seen < self.storage.num_samples:
            seen = records["usage_count"] > 0
            values = np.where(seen, values, np.float32(0))
            counts = seen.astype(np.float32) if weights is None else np.where(seen, weights, np.float32(0))
        if counts is None:
            means: list[float] = part_means(values, sizes).tolist()
            return means
        known, total = part_means(counts, sizes), part_means(values * counts, sizes)
        of_seen: list[float] = np.divide(total, known, out=np.full(len(sizes), math.nan), where=known > 0).tolist()
        return of_seen

    def with_trend(self, expected: float) -> float:
        """Convert a value of `expected` to a loss, with the current trend."""
        storage = self.storage
        if not storage.is_relative:
            return expected
        trend = storage.batch_trend.value
        return expected + trend if storage.are_offsets else expected * trend

    def worth(self, records: NDArray[Any]) -> float:
        """Share of their advantage that samples chosen for low estimates keep when seen again, in [0, 1].

        Some of the lowest estimates are too low by chance. To measure how much, the quarter that was lowest before the
        last observation is compared with what was then observed.

        Args:
            records: RECORD[M], samples from which to measure it. With too few of them, and without per-sample losses,
                the result is 0.

        Source: regression to the mean, cross-validated; measured in benchmarks/incidents.py, row "one_nan".
        """
        alpha, records = EXACT_ALPHA if self.alpha is None else self.alpha, records[records["usage_count"] > 1]
        if self.storage.part_size != EXACT or len(records) < LEAST_WORTH or alpha == 1:
            return 0.0
        last = records["last"].astype(np.float64)
        weight = np.maximum(alpha, 1 / records["usage_count"].astype(np.float64))
        before = (records["loss"] - weight * last) / (1 - weight)
        lowest = before <= np.sort(before)[len(before) // 4]
        promised, kept = before.mean() - before[lowest].mean(), last.mean() - last[lowest].mean()
        return float(min(1.0, max(0.0, kept / promised))) if promised > 0 else 0.0

    def learn(
        self,
        indices: NDArray[np.int64],
        means: NDArray[np.float64],
        sizes: NDArray[np.int64] | None,
        trend: NDArray[np.float64],
        *,
        predictions: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None,
        done: Callable[[], object] | None = None,
    ) -> None:
        """Learn from reports on distinct samples, whose order does not matter.

        Args:
            indices: int64[M], distinct.
            means: float64[P], mean loss of consecutive parts of ``indices``; finite.
            sizes: int64[P], samples of each part, their sum M; None if each sample is its own part.
            trend: float64[P], what `observe` returned for the batch of each part.
            predictions: int64[K] and float32[3 P, K], samples and the rows of `PredictionRows` for them, or None.
            done: Called when the table has learned.
        """
        storage = self.storage
        records = storage.records.take(indices)
        if storage.part_size != WHOLE_BATCH:
            # A sample's loss may overflow float32 even if the mean of its batch does not.
            means = np.clip(means, -LARGEST_LOSS, LARGEST_LOSS)
        seen, num_seen = None, storage.num_seen
        if num_seen < storage.num_samples:
            seen = records["usage_count"] > 0
            num_seen += len(seen) - int(np.count_nonzero(seen))
        count = count_use(records)
        if sizes is None:
            alpha = EXACT_ALPHA if self.alpha is None else self.alpha
            observed = means.astype(np.float32)
            records["loss"] = moving_average(records["loss"], observed, count, alpha)
        else:
            observed, estimate = np.repeat(means.astype(np.float32), sizes), records["loss"]
            if storage.estimator == "additive":
                alpha = ADDITIVE_ALPHA if self.alpha is None else self.alpha
                known = np.ones(len(estimate), bool) if seen is None else seen
                records["loss"] = additive(estimate, known, means, sizes, alpha)
            elif storage.are_offsets:
                records["loss"] = offset(estimate, means, trend, sizes)
            else:
                share = estimate if seen is None else np.where(seen, estimate, np.float32(1))
                leak = leak_of(min(storage.part_size or storage.batch_size, storage.batch_size))
                records["loss"] = relative(share, means, trend, sizes, leak=leak)
        records["last"] = observed
        records["mean"] += (observed - records["mean"]) / count
        store = None if predictions is None else storage.evidence.updated(*predictions)
        with storage.lock:
            storage.is_whole = False
            storage.records.put(indices, records)
            if store is not None:
                store()
            storage.num_seen = num_seen
            if done is not None:
                done()
            storage.is_whole = True
