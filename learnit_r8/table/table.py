"""The sample table: the loss estimate of every sample, how reported losses update it, and views for users."""

from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import check_choice, is_number, whole_number
from . import estimators
from .exclusions import Exclusions
from .figures import html_table
from .holder import ReportHolder
from .label_noise import Ranking, Suspects, find_suspects, rank
from .labels.evidence import Evidence
from .labels.frame import columns_of, make_frame
from .losses import EXACT, WHOLE_BATCH, source_of
from .names import checked_ids, coded, digest_of
from .quantiles import MOST_RANKED, Quartile, Sample, quartiles_of, quartiles_of_some, samples_of
from .records import LARGEST_LOSS, RECORD, Column, Records, Snapshot, count_use
from .trend import BatchTrend

ESTIMATORS = {"relative": 1.0, "additive": 0.1}
"""Estimators for batch means, with the weight of a new observation."""

SLICE = 2**16
"""Records that a view copies at a time, in a tenth of a millisecond."""

LARGE = 2**20
"""Number of samples from which records are not copied during a step: 16 MB take 10 ms."""


class SampleTable:
    """The running loss and use count of every sample, by its index.

    Args:
        num_samples: N, >= 1.
        batch_size: B, >= 1; sets how fast the trend of the loss follows (half an epoch).
        estimator: How a batch mean updates its samples: "relative" (default) or "additive".
        alpha: Weight of a new observation, in (0, 1]; by default 0.5 for per-sample losses and 0.1 for "additive".
            "relative" does not use it.
        groups: Sequence of N labels (classes), or None.
        sample_ids: Sequence of N names to show in place of indices, or None.

    Raises:
        ValueError: a size is below 1, the estimator is unknown, alpha is outside (0, 1], or a sequence has another
            length than N.

    Attributes:
        part_size: Kind of the reports, fixed by the first: None before it, EXACT for one loss per sample, the size of
            a part for means of parts, WHOLE_BATCH for batch means.
        batch_trend: Moving average of the batch losses, and statistics of the first ones.
        exclusions: The samples in quarantine, and those under watch.
        evidence: What was predicted for the samples, where predictions are reported with the losses.
        lock: Held while records are stored, and for each slice that a view copies.
        is_whole: Whether nothing is half stored; false for good once an exception has cut that.
        group_labels: The distinct labels, in the order of the codes in ``records``; None without groups.
        group_sizes: Number of samples with each label; empty without groups.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        estimator: str = "relative",
        alpha: float | None = None,
        groups: ArrayLike | None = None,
        sample_ids: Sequence[Any] | None = None,
    ) -> None:
        self.num_samples = num_samples = whole_number("num_samples", num_samples, least=1)
        self.batch_size = batch_size = whole_number("batch_size", batch_size, least=1)
        check_choice("estimator", estimator, sorted(ESTIMATORS))
        if alpha is not None and not (is_number(alpha) and 0 < alpha <= 1):
            raise ValueError(f"alpha must be in (0, 1], got {alpha!r}.")
        self.estimator = estimator
        self.alpha = alpha
        self.sample_ids = checked_ids(sample_ids, num_samples)
        self.part_size: int | None = None
        self.batch_trend = BatchTrend(num_samples, batch_size)
        self.records = Records(num_samples)
        self.exclusions = Exclusions()
        self.evidence = Evidence(num_samples)
        self._holder: ReportHolder | None = None
        self._offsets = False
        self._num_seen = 0
        self.lock = threading.RLock()
        self.is_whole = True
        self.group_labels: NDArray[Any] | None = None
        self.group_sizes: tuple[int, ...] = ()
        if groups is not None:
            self.group_labels, codes, self.group_sizes = coded(np.asarray(groups), num_samples, batch_size)
            self.records["group"][:] = codes

    def hold_back(self, holder: ReportHolder) -> None:
        """Register ``holder`` to hand over its reports before the table is read; it replaces the one before."""
        self._holder = holder

    def hand_over(self) -> None:
        """Learn from all reports held back."""
        if self._holder is not None:
            self._holder.hand_over()

    def settle_some(self, seconds: float) -> bool:
        """Write some of the queued records; see `Records.settle_some`."""
        can_go_on = self.records.settle_some(seconds)
        return self.evidence.records.settle_some(seconds) and can_go_on if self.evidence.records else can_go_on

    def settle(self) -> None:
        """Write all queued records."""
        self.records.settle()
        if self.evidence.records is not None:
            self.evidence.records.settle()

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"SampleTable({self.num_samples:,} samples, losses: {self.source})"

    def _repr_html_(self) -> str:
        """The quarters of the samples, for a notebook."""
        rows = [(f"Q{place}", q.low, q.high, q.mean, q.uses) for place, q in enumerate(self.quartiles(), start=1)]
        return html_table(repr(self), ("", "lowest loss", "highest", "mean", "mean uses"), rows)

    @property
    def source(self) -> str:
        """The source of the estimates: "exact", "parts of 4", "batch means of 32" or "nothing yet"."""
        return source_of(self.part_size, self.batch_size)

    @property
    def loss(self) -> NDArray[np.float32]:
        """float32[N], estimated loss of every sample, NaN for unseen ones; a new array each time."""
        self.hand_over()
        return np.array(self._estimates(self._copy("loss"), self._copy("usage_count")))

    avg_loss = loss

    @property
    def last(self) -> NDArray[np.float32]:
        """float32[N], the last observed loss that each sample was part of, NaN for unseen ones."""
        return self._seen_values("last")

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32[N], mean of the observed losses that each sample was part of, NaN for unseen ones."""
        return self._seen_values("mean")

    @property
    def given(self) -> NDArray[np.int64]:
        """int64[N], the label of every sample as reported with predictions; -1 where none were."""
        return self._evidence_of("given", "visits")

    @property
    def suggested(self) -> NDArray[np.int64]:
        """int64[N], the class predicted most for every sample among those that are not its label; -1 where none is."""
        return self._evidence_of("leader", "lead")

    def _evidence_of(self, field: str, needed: str) -> NDArray[np.int64]:
        self.hand_over()
        whole = self.evidence.whole
        if whole is None:
            return np.full(self.num_samples, -1)
        return np.where(whole[needed] > 0, whole[field].astype(np.int64), -1)

    @property
    def usage_count(self) -> NDArray[np.uint16]:
        """uint16[N], times each sample was learned from, at most 65535."""
        self.hand_over()
        return self._copy("usage_count")

    @property
    def quarantined(self) -> NDArray[np.int64]:
        """int64[K], the samples that are not drawn any more, in order; read-only."""
        return self.exclusions.quarantined

    def frozen(self) -> tuple[SampleTable, Snapshot]:
        """A table that knows what this one knows now, and its records: for another thread, and `estimates` only."""
        self.hand_over()
        frozen, snapshot = copy.copy(self), self.records.snapshot()
        frozen.batch_trend, frozen._holder = copy.copy(self.batch_trend), None
        return frozen, snapshot

    def _seen_values(self, field: str) -> NDArray[np.float32]:
        self.hand_over()
        values: NDArray[np.float32] = np.where(self._copy("usage_count") > 0, self._copy(field), np.float32("nan"))
        return values

    def _copy(self, field: str) -> NDArray[Any]:
        """A field of every record, copied slice by slice, so that training need not wait for all of it."""
        copy = np.empty(self.num_samples, RECORD[field])
        for start in range(0, self.num_samples, SLICE):
            with self.lock:
                copy[start : start + SLICE] = self.records[field][start : start + SLICE]
        return copy

    def estimates(self, records: NDArray[Any]) -> NDArray[np.float32]:
        """float32[M], the estimated losses in ``records``, NaN for unseen samples; may be a view of them."""
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

    @property
    def trend(self) -> float:
        """Moving average of the batch losses; NaN before the first."""
        return self.batch_trend.value

    @property
    def untrained_loss(self) -> float:
        """The loss of an untrained model; NaN before the first report. See `UntrainedLoss`."""
        return self.batch_trend.untrained.value

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
        if lowest < 0 and not self._offsets:
            self._use_offsets()
        trend = self.batch_trend
        if trend.is_early:
            return trend.observe_early(mean, mean if reported is None else reported)
        before = trend.value
        trend.value = before + trend.weight * (mean - before)
        return before

    @property
    def trend_mark(self) -> tuple[float, bool]:
        """The trend, for `go_back_to`."""
        return self.trend, self._offsets

    def go_back_to(self, trend_mark: tuple[float, bool]) -> None:
        """Return to an earlier trend, unless the estimates have switched to differences since."""
        trend, offsets = trend_mark
        if offsets == self._offsets and not math.isnan(trend):
            self.batch_trend.value = trend

    def _use_offsets(self) -> None:
        self.hand_over()
        if self._detrends and self.batch_trend.num_reports:
            estimate, trend = self.records["loss"], np.float32(self.trend)
            offsets = np.where(self.records["usage_count"] > 0, estimate - np.float32(1), estimate) * trend
            self.records.release_snapshots()
            with self.lock:
                self.is_whole = False
                self.records["loss"][:] = offsets
                if self._holder is not None:
                    self._holder.use_offsets(self.trend)
                self._offsets = True
                self.is_whole = True
        else:
            self._offsets = True

    @property
    def has_offsets(self) -> bool:
        """Whether the estimates of "relative" are differences from the trend, as there were losses below zero."""
        return self._offsets

    @property
    def num_seen(self) -> int:
        """Number of samples that were learned from at least once."""
        return self._num_seen

    def expected(self, records: NDArray[Any], sizes: NDArray[np.int64]) -> list[float]:
        """Mean stored estimate of consecutive batches over the samples already seen, without the trend.

        Args:
            records: RECORD[M].
            sizes: int64[P], samples of each batch, their sum M.

        Returns:
            P floats, for `with_trend`; NaN for a batch of unseen samples.
        """
        return estimators.expected(records, sizes, all_seen=self._num_seen == self.num_samples)

    def worth(self, records: NDArray[Any]) -> float:
        """Share of their advantage that samples chosen for low estimates keep when seen again, in [0, 1].

        Args:
            records: RECORD[M], samples from which to measure it. Without per-sample losses the result is 0.
        """
        return estimators.worth(records, 0.5 if self.alpha is None else self.alpha) if self.part_size == EXACT else 0.0

    def with_trend(self, expected: float) -> float:
        """Convert a value of `expected` to a loss, with the current trend."""
        # Without the property: every step asks twice.
        if self.part_size == EXACT or self.estimator != "relative":
            return expected
        trend = self.batch_trend.value
        return expected + trend if self._offsets else expected * trend

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
            predictions: int64[K] and float32[3, K], samples and the rows of `PredictionRows` for them, or None.
            done: Called when the table has learned.
        """
        records = self.records.gather(indices) if records is None else records
        if self.part_size != WHOLE_BATCH:
            # A sample's loss may overflow float32 even if the mean of its batch does not.
            means = np.clip(means, -LARGEST_LOSS, LARGEST_LOSS)
        seen, num_seen = None, self._num_seen
        if num_seen < self.num_samples:
            seen = records["usage_count"] > 0
            num_seen += len(seen) - int(np.count_nonzero(seen))
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
        store = None if predictions is None else self.evidence.updated(*predictions)
        with self.lock:
            self.is_whole = False
            self.records.put(indices, records)
            if store is not None:
                store()
            self._num_seen = num_seen
            if done is not None:
                done()
            self.is_whole = True

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

    def name_of(self, index: int) -> Any:
        """The name of a sample: its entry in ``sample_ids``, otherwise its index."""
        return index if self.sample_ids is None else self.sample_ids[index]

    def hardest(self, k: int = 10) -> list[Sample]:
        """The ``k`` seen samples with the highest estimated loss, highest first."""
        whole_number("k", k, least=0)
        loss = self.loss
        order = np.argsort(-loss, kind="stable")[: min(k, int((~np.isnan(loss)).sum()))]
        return self.describe(order)

    def describe(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """The figures of some samples, in the given order."""
        self.hand_over()
        chosen = np.asarray(indices, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.num_samples:
            raise ValueError(f"indices must be in [0, {self.num_samples}), got {indices!r}.")
        records = self.records.take(chosen)
        return samples_of(chosen, records, self.estimates(records), self.sample_ids)

    def quartiles(self) -> list[Quartile]:
        """The seen samples in four quarters, Q1 (lowest loss) to Q4; empty if fewer than four were seen.

        Of more than two million samples, a random part of that many is read.
        """
        if self.num_samples <= MOST_RANKED:
            return quartiles_of(self.loss, self.usage_count)
        self.hand_over()
        each = self.num_samples / MOST_RANKED
        places = (np.arange(MOST_RANKED) + np.random.default_rng(0).random(MOST_RANKED)) * each
        records = self.records.gather(places.astype(np.int64))
        return quartiles_of_some(self.estimates(records), records["usage_count"], self._num_seen)

    def suspects(self, precision: float = 0.5) -> Suspects:
        """Samples that look mislabelled, most suspect first; only samples with at least 4 uses are judged.

        Without predictions, they are known only where the losses fall into two groups, as in networks that fit their
        data. Report predictions with the losses for a verdict in others; see `find_suspects`.

        Args:
            precision: Least share of the list to be wrong, as estimated, in (0, 1): the higher, the shorter the list.

        Raises:
            ValueError: ``precision`` is outside its range.
        """
        if not (is_number(precision) and 0 < precision < 1):
            raise ValueError(f"precision must be in (0, 1), got {precision!r}.")
        self.hand_over()
        return self.suspects_in(self.records, self.evidence.whole, precision)

    def suspects_in(self, records: Any, evidence: Any = None, precision: float = 0.5) -> Suspects:
        """The suspects among some records of the table, and the evidence for them; their indices are positions here."""
        exact, by_group = self.part_size == EXACT, self.group_labels is not None
        return find_suspects(
            records, self.untrained_loss, exact=exact, by_group=by_group, evidence=evidence, precision=precision
        )

    def ranking(self, top: int = 100) -> Ranking:
        """The samples whose labels are most suspect, in order; no verdict, as there are most suspect ones anywhere.

        Args:
            top: Most samples to list, >= 0.
        """
        whole_number("top", top, least=0)
        self.hand_over()
        return rank(self.records, self.evidence.whole, top)

    def to_frame(self, library: str | None = None) -> Any:
        """A data frame with a row for each sample, for tools that clean data.

        Args:
            library: "pandas" or "polars"; by default the one that is imported already, else the one that is installed.

        Returns:
            The columns of cleanlab: is_label_issue; label_score in [0, 1], 0 = bad; given_label and predicted_label,
            missing where unknown. Then ours: sample (its name or index), loss, last, mean, uses; and of the suspects
            score and why.

        Raises:
            ImportError: neither library is installed, or not the one that was asked for.
            ValueError: the library is another.
        """
        return make_frame(columns_of(self), library)

    def state_dict(self, *, in_background: bool = False) -> dict[str, Any]:
        """Everything learned, copied: arrays of N by field name, and plain numbers.

        Args:
            in_background: Whether another thread reads the arrays while the run continues. For a large table they are
                then `Column` objects in place of copies; one of them must be closed once all are read.
        """
        self.hand_over()
        state: dict[str, Any]
        if in_background and self.num_samples >= LARGE:
            snapshot = self.records.snapshot()
            state = {name: Column(snapshot, name) for name in _FIELDS}
        else:
            state = {name: self.records[name].copy() for name in _FIELDS}
        trend = self.batch_trend
        state["numbers"] = {
            "part_size": self.part_size,
            "trend": trend.value,
            "_num_reports": trend.num_reports,
            "_offsets": self._offsets,
        }
        state["evidence"] = self.evidence.state_dict(in_background=in_background and self.num_samples >= LARGE)
        return {**state, **self.exclusions.state_dict(), **trend.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; groups stay unchanged."""
        self.records.release_snapshots()
        self.records.forget_waiting()
        self.is_whole = False
        for name in _FIELDS:
            self.records[name][:] = state[name]
        self._num_seen = int(np.count_nonzero(self.records["usage_count"]))
        numbers = state["numbers"]
        self.part_size, self._offsets = numbers["part_size"], numbers["_offsets"]
        self.exclusions.load_state_dict(state)
        self.evidence.load_state_dict(state["evidence"])
        self.batch_trend.load_state_dict(state, value=numbers["trend"], num_reports=numbers["_num_reports"])
        self.is_whole = True

    @functools.cached_property
    def _digest(self) -> str | None:
        return digest_of(self.sample_ids, self.num_samples)

    def digest(self, count: int) -> str | None:
        """Digest of the first ``count`` names, the same for lists and arrays of them; None without names."""
        return digest_of(self.sample_ids, count)

    def identity(self) -> dict[str, Any]:
        """The facts in which a saved state must agree: sizes, estimator, and a digest of the names."""
        return {
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "estimator": self.estimator,
            "sample_ids": self._digest,
        }


_FIELDS = ("loss", "last", "mean", "usage_count")
