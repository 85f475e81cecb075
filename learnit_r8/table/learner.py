"""The learner: how reported losses change what is known of the samples; and who holds reports back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._validation import is_number
from . import estimators
from .losses import EXACT, WHOLE_BATCH
from .records import LARGEST_LOSS, count_use

if TYPE_CHECKING:
    from .storage import SampleStorage


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
    """Updates the trend with every report, and the records of samples when their reports are handed over.

    Args:
        storage: What it learns into.
        alpha: Weight of a new observation, in (0, 1]; by default 0.5 for per-sample losses and 0.1 for "additive".
            "relative" does not use it.

    Raises:
        ValueError: alpha is outside (0, 1].
    """

    def __init__(self, storage: SampleStorage, *, alpha: float | None = None) -> None:
        if alpha is not None and not (is_number(alpha) and 0 < alpha <= 1):
            raise ValueError(f"alpha must be in (0, 1], got {alpha!r}.")
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

    def observe(self, mean: float, lowest: float, reported: float | None = None) -> float:
        """Update the trend with one batch loss.

        Args:
            mean: The batch loss, finite, clipped as by `BatchTrend.believed`.
            lowest: The smallest loss of its samples or parts; < 0 switches the "relative" estimator to differences for
                good.
            reported: The batch loss before clipping; None if it is the same.

        Returns:
            The trend before this loss; for the first loss, the loss itself.
        """
        if lowest < 0 and not self.storage.are_offsets:
            self._use_offsets()
        trend = self.storage.batch_trend
        if trend.is_early:
            return trend.observe_early(mean, mean if reported is None else reported)
        before = trend.value
        trend.value = before + trend.weight * (mean - before)
        return before

    @property
    def trend_mark(self) -> tuple[float, bool]:
        """The trend, for `go_back_to`."""
        return self.storage.batch_trend.value, self.storage.are_offsets

    def go_back_to(self, trend_mark: tuple[float, bool]) -> None:
        """Return to an earlier trend, unless the estimates have switched to differences since."""
        trend, offsets = trend_mark
        if offsets == self.storage.are_offsets and not math.isnan(trend):
            self.storage.batch_trend.value = trend

    def _use_offsets(self) -> None:
        self.hand_over()
        storage = self.storage
        if not (storage.is_relative and storage.batch_trend.num_reports):
            storage.are_offsets = True
            return
        trend = storage.batch_trend.value
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

    def expected(self, records: NDArray[Any], sizes: NDArray[np.int64]) -> list[float]:
        """Mean stored estimate of consecutive batches over the samples already seen, without the trend.

        Args:
            records: RECORD[M].
            sizes: int64[P], samples of each batch, their sum M.

        Returns:
            P floats, for `with_trend`; NaN for a batch of unseen samples.
        """
        return estimators.expected(records, sizes, all_seen=self.storage.num_seen == self.storage.num_samples)

    def with_trend(self, expected: float) -> float:
        """Convert a value of `expected` to a loss, with the current trend."""
        storage = self.storage
        if not storage.is_relative:
            return expected
        trend = storage.batch_trend.value
        return expected + trend if storage.are_offsets else expected * trend

    def worth(self, records: NDArray[Any]) -> float:
        """Share of their advantage that samples chosen for low estimates keep when seen again, in [0, 1].

        Args:
            records: RECORD[M], samples from which to measure it. Without per-sample losses the result is 0.
        """
        is_exact = self.storage.part_size == EXACT
        return estimators.worth(records, EXACT_ALPHA if self.alpha is None else self.alpha) if is_exact else 0.0

    def learn(
        self,
        indices: NDArray[np.int64],
        means: NDArray[np.float64],
        sizes: NDArray[np.int64] | None,
        trend: NDArray[np.float64],
        records: NDArray[Any] | None = None,
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
            records: RECORD[M], the samples' current records if available; overwritten.
            predictions: int64[K] and float32[3 P, K], samples and the rows of `PredictionRows` for them, or None.
            done: Called when the table has learned.
        """
        storage = self.storage
        records = storage.records.gather(indices) if records is None else records
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
            records["loss"] = estimators.moving_average(records["loss"], observed, count, alpha)
        else:
            observed = np.repeat(means.astype(np.float32), sizes)
            records["loss"] = self._divided(records["loss"], seen, means, sizes, trend)
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

    def _divided(
        self,
        estimate: NDArray[np.float32],
        seen: NDArray[np.bool_] | None,
        means: NDArray[np.float64],
        sizes: NDArray[np.int64],
        trend: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        storage = self.storage
        if storage.estimator == "additive":
            alpha = ADDITIVE_ALPHA if self.alpha is None else self.alpha
            known = np.ones(len(estimate), bool) if seen is None else seen
            return estimators.additive(estimate, known, means, sizes, alpha)
        if storage.are_offsets:
            return estimators.offset(estimate, means, trend, sizes)
        share = estimate if seen is None else np.where(seen, estimate, np.float32(1))
        leak = estimators.leak_of(min(storage.part_size or storage.batch_size, storage.batch_size))
        return estimators.relative(share, means, trend, sizes, leak=leak)
