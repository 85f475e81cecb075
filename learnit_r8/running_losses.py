"""The running losses: what is estimated of every sample, and how a reported loss moves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import estimators
from .checks import is_number, whole_number
from .early import FirstLosses
from .guard import LARGEST_LOSS
from .kinds import EXACT, WHOLE_BATCH, source_of
from .losses import Reading
from .records import Records, count_use
from .untrained import UntrainedLoss

ESTIMATORS = {"relative": 1.0, "additive": 0.1}
"""Estimators for batch means, with the weight of a new observation."""

LEAST_WORTH = 64
"""Samples that tell what estimates are worth."""

NUM_CLIPPED = 80
"""First reports of a run of which none is believed whole if it is far beyond the others; the spike guard has its
thresholds after as many."""


class RunningLosses:
    """Running loss and use of every sample, by its position.

    Args:
        num_samples: N, >= 1.
        batch_size: B, >= 1; sets how fast the trend of the loss follows (half an epoch).
        estimator: How a batch mean is divided; see `SampleTable`.
        alpha: Weight of a new observation; see `SampleTable`.

    Raises:
        ValueError: a size below 1, an unknown estimator, or an alpha outside (0, 1].

    Attributes:
        part_size: Kind of the reports, fixed by the first: None before it, EXACT for one loss a sample, the size of
            a part for means of parts, WHOLE_BATCH for batch means.
        trend: Moving average of the batch losses; NaN before the first.
        sync: Called before the losses are read; a plan that holds reports back hands them over then.
        on_offsets: Called with the trend when losses turn negative and estimates become differences to it.
        quarantined: int64[K], the samples that are not drawn any more, in order; not to be written to.
        watched: int64[K], samples to spread over the batches, since one of them may be bad; likewise.
        is_early: Whether a high loss may still be believed in part only; see `believed`.
    """

    def __init__(
        self, num_samples: int, *, batch_size: int, estimator: str = "relative", alpha: float | None = None
    ) -> None:
        self.num_samples = num_samples = whole_number("num_samples", num_samples, least=1)
        self.batch_size = batch_size = whole_number("batch_size", batch_size, least=1)
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)}, got {estimator!r}.")
        if alpha is not None and not (is_number(alpha) and 0 < alpha <= 1):
            raise ValueError(f"alpha must be in (0, 1], got {alpha!r}.")
        self.estimator = estimator
        self.alpha = alpha
        self.part_size: int | None = None
        self.trend = math.nan
        self.untrained = UntrainedLoss(-(-num_samples // (20 * batch_size)))
        self.sync: Callable[[], None] = _nothing
        self.on_offsets: Callable[[float], None] = _nothing
        self._num_reports = 0
        self._offsets = False
        self._trend_weight = min(1.0, 2 / (num_samples / (2 * batch_size) + 1))
        self._num_early = max(self.untrained.size, math.ceil(1 / self._trend_weight), NUM_CLIPPED)
        self._first = FirstLosses()
        self.is_early = True
        self._num_seen = 0
        self.records = Records(num_samples)
        self.quarantined = self.watched = _NOBODY

    def __len__(self) -> int:
        return self.num_samples

    @property
    def source(self) -> str:
        """Where the estimates come from: "exact", "parts of 4", "batch means of 32" or "nothing yet"."""
        return source_of(self.part_size, self.batch_size)

    @property
    def loss(self) -> NDArray[np.float32]:
        """float32[N], estimated loss of every sample, NaN where never seen; a new array each time."""
        self.sync()
        return np.array(self._estimates(self.records["loss"], self.records["usage_count"]))

    avg_loss = loss

    @property
    def last(self) -> NDArray[np.float32]:
        """float32[N], the last observation each sample was part of, NaN where never seen."""
        return self._seen_values("last")

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32[N], mean of the observations each sample was part of, NaN where never seen."""
        return self._seen_values("mean")

    @property
    def usage_count(self) -> NDArray[np.uint16]:
        """uint16[N], times each sample was learned from; stays at 65535 once there."""
        self.sync()
        uses: NDArray[np.uint16] = self.records["usage_count"].copy()
        return uses

    def _seen_values(self, field: str) -> NDArray[np.float32]:
        self.sync()
        values: NDArray[np.float32] = np.where(self.records["usage_count"] > 0, self.records[field], np.float32("nan"))
        return values

    def estimates(self, records: NDArray[Any]) -> NDArray[np.float32]:
        """float32[M], the estimated losses in ``records``, NaN where never seen; may be a view of them."""
        return self._estimates(records["loss"], records["usage_count"])

    def _estimates(self, values: NDArray[np.float32], uses: NDArray[np.uint16]) -> NDArray[np.float32]:
        if self._detrends:
            trend = np.float32(self.trend)
            values = values + trend if self._offsets else values * trend
        if self._num_seen == self.num_samples:
            return values
        return np.where(uses > 0, values, np.float32("nan"))

    @property
    def _detrends(self) -> bool:
        return self.estimator == "relative" and self.part_size != EXACT

    def observe(self, mean: float, lowest: float, reported: float | None = None) -> float:
        """Move the trend on by one batch loss.

        Args:
            mean: The batch loss, finite, as far as it is `believed`.
            reported: All of it, if that is more.
            lowest: The smallest part of it; < 0 turns the "relative" estimator to differences for good.

        Returns:
            The trend before this loss (the loss itself, for the first one).
        """
        trend = self.trend
        if self._num_reports < self._num_early or (lowest < 0 and not self._offsets):
            return self._observe_early(mean, lowest, mean if reported is None else reported)
        self.trend = trend + self._trend_weight * (mean - trend)
        return trend

    def _observe_early(self, mean: float, lowest: float, reported: float) -> float:
        """`observe` while the trend is a plain mean, or where the first loss < 0 is met."""
        count = self._num_reports = self._num_reports + 1
        if lowest < 0 and not self._offsets:
            self._use_offsets()
        trend = mean if count == 1 else self.trend
        self.trend = trend + max(self._trend_weight, 1 / count) * (mean - trend)
        self.untrained.add(reported)
        self.is_early = count < self._num_early
        return trend

    @property
    def untrained_loss(self) -> float:
        """What a model that has learnt nothing loses; NaN before the first report. See `UntrainedLoss`."""
        return self.untrained.value

    def believed(self, reading: Reading) -> Reading:
        """The part of a reported loss to learn from.

        Too few losses are known yet for a guard to judge them: one that is more than twice as high as the highest
        before it counts as twice that, and the losses of its samples are lowered with it.
        """
        if self._num_reports >= NUM_CLIPPED:
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
    def trend_mark(self) -> tuple[float, bool]:
        """The trend, for `go_back_to`."""
        return self.trend, self._offsets

    def go_back_to(self, trend_mark: tuple[float, bool]) -> None:
        """Take the trend from before, unless estimates have become differences to a later one."""
        trend, offsets = trend_mark
        if offsets == self._offsets and not math.isnan(trend):
            self.trend = trend

    def _use_offsets(self) -> None:
        self.sync()
        if self._detrends and self._num_reports > 1:
            estimate = self.records["loss"]
            estimate[self.records["usage_count"] > 0] -= 1
            estimate *= np.float32(self.trend)
            self.on_offsets(self.trend)
        self._offsets = True

    def expected(self, records: NDArray[Any], sizes: NDArray[np.int64]) -> list[float]:
        """Mean estimate of consecutive batches over the samples already seen, before the trend is put back.

        Args:
            records: RECORD[M].
            sizes: int64[P], samples of each batch, their sum M.

        Returns:
            P floats, for `with_trend`; NaN where no sample was seen.
        """
        values = records["loss"]
        if self._num_seen == self.num_samples:
            seen_by_all: list[float] = estimators.part_means(values, sizes).tolist()
            return seen_by_all
        seen = records["usage_count"] > 0
        known = estimators.part_means(seen.astype(np.float32), sizes)
        total = estimators.part_means(np.where(seen, values, np.float32(0)), sizes)
        expected: list[float] = np.divide(total, known, out=np.full(len(sizes), math.nan), where=known > 0).tolist()
        return expected

    def with_trend(self, expected: float) -> float:
        """The loss that a value of `expected` stands for now."""
        if not self._detrends:
            return expected
        return expected + self.trend if self._offsets else expected * self.trend

    def worth(self, records: NDArray[Any]) -> float:
        """How much of their advantage samples keep that were chosen for low estimates, in [0, 1].

        Among the lowest estimates are those that are too low by chance. The estimates before the last observation
        tell how many: the quarter that was lowest then, as it turned out to be.

        Args:
            records: RECORD[M], samples to tell it from; 0 where they tell nothing, as with means of several samples.

        Source: regression to the mean, cross-validated; measured in benchmarks/incidents.py, row "one_nan".
        """
        records = records[records["usage_count"] > 1]
        alpha = 0.5 if self.alpha is None else self.alpha
        if self.part_size != EXACT or len(records) < LEAST_WORTH or alpha == 1:
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
        records: NDArray[Any] | None = None,
    ) -> None:
        """Learn from reports on distinct samples. The order of such reports does not matter.

        Args:
            indices: int64[M], distinct.
            means: float64[P], mean loss of consecutive parts of ``indices``; finite.
            sizes: int64[P], samples of each part, their sum M; None if each sample is its own part.
            trend: float64[P], what `observe` returned for the batch of each part.
            records: RECORD[M], the samples' current records if they are at hand; overwritten.
        """
        records = self.records.take(indices) if records is None else records
        if self.part_size != WHOLE_BATCH:
            # One sample's loss may overflow float32 where the mean of its batch does not.
            means = np.clip(means, -LARGEST_LOSS, LARGEST_LOSS)
        seen = None
        if self._num_seen < self.num_samples:
            seen = records["usage_count"] > 0
            self._num_seen += len(seen) - int(np.count_nonzero(seen))
        count = count_use(records)
        if sizes is None:
            alpha = 0.5 if self.alpha is None else self.alpha
            observed = means.astype(np.float32)
            records["loss"] = estimators.moving_average(records["loss"], observed, count, alpha)
        else:
            observed = np.repeat(means.astype(np.float32), sizes)
            records["loss"] = self._divided(records["loss"], seen, means, sizes, trend)
        records["last"] = observed
        records["mean"] += (observed - records["mean"]) / count
        self.records.put(indices, records)

    def _divided(
        self,
        estimate: NDArray[np.float32],
        seen: NDArray[np.bool_] | None,
        means: NDArray[np.float64],
        sizes: NDArray[np.int64],
        trend: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        if self.estimator == "additive":
            alpha = ESTIMATORS["additive"] if self.alpha is None else self.alpha
            known = np.ones(len(estimate), bool) if seen is None else seen
            return estimators.additive(estimate, known, means, sizes, alpha)
        if self._offsets:
            return estimators.offset(estimate, means, trend, sizes)
        share = estimate if seen is None else np.where(seen, estimate, np.float32(1))
        leak = estimators.leak_of(min(self.part_size or self.batch_size, self.batch_size))
        return estimators.relative(share, means, trend, sizes, leak=leak)

    def is_quarantined(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool[M], which of some samples are not drawn any more."""
        known = self.quarantined
        if not len(known):
            return np.zeros(len(indices), bool)
        places = np.minimum(np.searchsorted(known, indices), len(known) - 1)
        found: NDArray[np.bool_] = known[places] == indices
        return found

    def quarantine(self, indices: NDArray[np.int64]) -> None:
        """Draw some samples no more, from the next chunk on."""
        self.quarantined = _read_only(np.union1d(self.quarantined, indices))

    def release(self, indices: NDArray[np.int64]) -> None:
        """Draw some samples again that were in quarantine."""
        self.quarantined = _read_only(np.setdiff1d(self.quarantined, indices))

    def watch(self, indices: NDArray[np.int64]) -> None:
        """Spread these samples, and no others, over the batches from the next chunk on."""
        self.watched = _read_only(np.unique(indices))

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, copied: arrays of N by field name, and plain numbers."""
        self.sync()
        state: dict[str, Any] = {name: self.records[name].copy() for name in _FIELDS}
        state["numbers"] = {name: getattr(self, name) for name in _NUMBERS}
        state["quarantined"], state["watched"] = self.quarantined.copy(), self.watched.copy()
        *first, recent = self._first
        state["first"] = [*first, list(recent)]
        state["untrained"] = self.untrained.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; groups stay as they are."""
        for name in _FIELDS:
            self.records[name][:] = state[name]
        self._num_seen = int(np.count_nonzero(self.records["usage_count"]))
        numbers = state["numbers"]
        for name in _NUMBERS:
            setattr(self, name, numbers[name])
        self.quarantined = _read_only(np.array(state.get("quarantined", ()), np.int64))
        self.watched = _read_only(np.array(state.get("watched", ()), np.int64))
        self.is_early = self._num_reports < self._num_early
        # A state of version 0.1 knows the mean of its first losses only.
        known, lowest, highest, second, recent = state.get("first", FirstLosses())
        self._first = FirstLosses(known, lowest, highest, second, tuple(recent))
        self.untrained.load_state_dict(state.get("untrained", {"value": numbers.get("untrained_loss"), "losses": []}))


_FIELDS = ("loss", "last", "mean", "usage_count")
_NUMBERS = ("part_size", "trend", "_num_reports", "_offsets")


def _read_only(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    indices.flags.writeable = False
    return indices


_NOBODY = _read_only(np.empty(0, np.int64))


def _nothing(*_: object) -> None:
    """What `RunningLosses.sync` and ``on_offsets`` do until a plan holds reports back."""
