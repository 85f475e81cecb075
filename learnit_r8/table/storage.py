"""The storage: everything that is known of the samples, as values; saved, loaded and copied as a whole."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import check_choice, whole_number
from .exclusions import Exclusions
from .labels.evidence import Evidence
from .labels.trust import EARLY, PLAIN, WEIGHED
from .losses import EXACT, source_of
from .names import Members, SampleIds, checked_ids, coded
from .records import ALL, Records, Where
from .trend import BatchTrend

ESTIMATORS = ["additive", "relative"]
"""Estimators for the means of batches."""

NO_TABLE_TREND = 256
"""Batches that stand for an epoch, half of which the trend of the losses is long, where there are no samples."""

FIELDS = ("loss", "last", "mean", "usage_count")


class SampleStorage:
    """What is known of every sample, and of the data as a whole. The training thread changes it.

    Args:
        num_samples: N, >= 0; 0 where the batches do not say which samples they hold.
        batch_size: B, >= 1.
        estimator: What "loss" in the records means: with "relative" and losses of batches or parts, the loss relative
            to the trend; otherwise the loss.
        groups: Sequence of N labels (classes), or None.
        sample_ids: Sequence of N names to show in place of indices, or None.
        most_ids: Most samples of a table that begins with none and grows with the ids of the user's batches; None for
            one of N samples for good.

    Raises:
        ValueError: a size is below 1, the estimator is unknown, or a sequence has another length than N.

    Attributes:
        num_samples, batch_size, estimator, sample_ids: As given; the first three grow with the ids.
        ids: The ids that came so far; None where their number is given.
        is_single: Whether every batch is one sample.
        group_labels: The distinct labels, in the order of the codes in ``records``; None without groups.
        group_sizes: Number of samples with each label; empty without groups.
        records: The records of the samples.
        evidence: What was predicted for the samples, where predictions are reported with the losses.
        exclusions: The samples in quarantine, and those under watch.
        batch_trend: Moving average of the batch losses, and statistics of the first ones.
        part_size: Kind of the reports, fixed by the first: None before it, EXACT for one loss per sample, the size of
            a part for means of parts, WHOLE_BATCH for batch means.
        are_offsets: Whether "loss" is relative to the trend as a difference; otherwise it is a ratio.
        num_seen: Number of samples that were learned from at least once.
        is_whole: Whether nothing is half stored; false for good once an exception has cut that.
        lock: Held while something is stored, and while some records are copied.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        estimator: str = "relative",
        groups: ArrayLike | None = None,
        sample_ids: Sequence[Any] | None = None,
        most_ids: int | None = None,
    ) -> None:
        self.num_samples = num_samples = whole_number("num_samples", num_samples, least=0)
        self.batch_size = batch_size = whole_number("batch_size", batch_size, least=1)
        check_choice("estimator", estimator, ESTIMATORS)
        self.estimator = estimator
        self.sample_ids = checked_ids(sample_ids, num_samples)
        self.ids = None if most_ids is None else SampleIds(most_ids)
        self.is_single = batch_size == 1 and most_ids is None
        self.group_labels: NDArray[Any] | None = None
        self.group_sizes: tuple[int, ...] = ()
        codes: Any = None
        if groups is not None:
            self.group_labels, codes, self.group_sizes = coded(np.asarray(groups), num_samples)
        self.records = Records(num_samples)
        if codes is not None:
            self.records.whole["group"][:] = codes
        self.evidence = Evidence(num_samples)
        self.exclusions = Exclusions()
        self.batch_trend = BatchTrend(num_samples or NO_TABLE_TREND * batch_size, batch_size)
        self.part_size: int | None = None
        self.are_offsets = False
        self.is_weighed = False
        self.num_seen = 0
        self.is_whole = True
        self.lock = threading.RLock()

    @property
    def source(self) -> str:
        """The source of the estimates: "exact", "parts of 4", "batch means of 32" or "nothing yet"."""
        return source_of(self.part_size, self.batch_size)

    @property
    def is_relative(self) -> bool:
        """Whether "loss" in the records is relative to the trend."""
        return self.estimator == "relative" and self.part_size != EXACT

    @property
    def untrained_loss(self) -> float:
        """The loss of an untrained model; NaN before the first report. See `UntrainedLoss`."""
        return self.batch_trend.untrained.value

    def name_of(self, index: int) -> Any:
        """The name of a sample: its entry in ``sample_ids``, otherwise its index."""
        return index if self.sample_ids is None else self.sample_ids[index]

    @property
    def group_names(self) -> list[Any] | None:
        """`group_labels` as a list."""
        return None if self.group_labels is None else self.group_labels.tolist()

    # A table that grows.

    def expect(self, size: int) -> None:
        """Make room for the samples of a data set, whose positions are their ids.

        Raises:
            ValueError: ids of another kind came before.
        """
        assert self.ids is not None
        self.ids.expect(size)
        self._grow()

    def find(self, ids: Any, *, are_indices: bool) -> Members:
        """The samples of a batch by their ids; the table grows by those that are new.

        Args:
            ids: See `SampleIds.find`.
            are_indices: Whether they are positions in the data set that `expect` was told of, one a row.

        Raises:
            TypeError, ValueError: as for `SampleIds.find`; the table is as before.
        """
        known: Any = self.ids
        if are_indices:
            indices = np.fromiter(ids, np.int64, len(ids))
            # Python's, of a list as short as a batch.
            if len(indices) and (min(ids) < 0 or max(ids) >= known.size):
                known.keep_indices(indices)
            members = Members(indices, len(indices))
        else:
            members = known.find(ids)
        if known.size > self.num_samples:
            self._grow()
        if self.part_size is None and len(members.indices) > self.batch_size:
            self.batch_size = len(members.indices)
        return members

    def _grow(self) -> None:
        assert self.ids is not None
        with self.lock:
            self.sample_ids = self.ids.names or None
            num_samples = self.ids.size
            self.records.resize(num_samples)
            self.evidence.resize(num_samples)
            self.num_samples = num_samples

    def note_weights(self) -> None:
        """Note that losses have weights from now on."""
        if not self.is_weighed:
            self.evidence.freeze(self.lock)
            self.is_weighed = True

    @property
    def trust(self) -> str:
        """Which margins may be judged by what weights have left of them, see `labels.trust`."""
        return PLAIN if not self.is_weighed else EARLY if self.evidence.is_frozen else WEIGHED

    def estimates(self, records: NDArray[Any]) -> NDArray[np.float32]:
        """float32[M], the estimated losses in ``records``, NaN for unseen samples; may be a view of them."""
        values: NDArray[np.float32] = records["loss"]
        if self.is_relative:
            trend = np.float32(self.batch_trend.value)
            values = values + trend if self.are_offsets else values * trend
        return self._of_seen(values, records)

    def _of_seen(self, values: NDArray[Any], records: NDArray[Any]) -> NDArray[Any]:
        """The values, NaN for unseen samples."""
        if self.num_seen == self.num_samples:
            return values
        return np.where(records["usage_count"] > 0, values, np.float32("nan"))

    def read(self, fields: Sequence[str], where: Where = ALL) -> dict[str, NDArray[Any]]:
        """Copies of fields for somebody to look at: loss as estimated; loss, last and mean NaN for unseen samples.

        The lock is held for each slice of the records, see `Records.slices`.

        Args:
            fields: Their names.
            where: The samples to read: a slice without a step, or int64[M].
        """

        def value_of(name: str, some: NDArray[Any]) -> NDArray[Any]:
            if name == "loss":
                return self.estimates(some)
            return self._of_seen(some[name], some) if some.dtype[name].kind == "f" else some[name]

        return self.records.columns(fields, self.lock, where, value_of=value_of)

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, copied: arrays of N by field name, and plain numbers.

        Reports that are held back are not in it: hand them over first. A million samples take some 5 ms, and
        three times as much with predictions.
        """
        trend = self.batch_trend
        numbers = {
            "part_size": self.part_size,
            "trend": trend.value,
            "_num_reports": trend.num_reports,
            "_offsets": self.are_offsets,
            "is_weighed": self.is_weighed,
        }
        grown = {} if self.ids is None else {"ids": self.ids.state_dict(), "batch_size": self.batch_size}
        return {
            **self.records.columns(FIELDS),
            **grown,
            "numbers": numbers,
            "evidence": self.evidence.state_dict(),
            **self.exclusions.state_dict(),
            **trend.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; groups stay unchanged."""
        self.is_whole = False
        if self.ids is not None and "ids" in state:
            self.ids.load_state_dict(state["ids"])
            self.batch_size = int(state["batch_size"])
            self._grow()
        for name in FIELDS:
            self.records.whole[name][:] = state[name]
        self.num_seen = int(np.count_nonzero(self.records.whole["usage_count"]))
        numbers = state["numbers"]
        self.part_size, self.are_offsets = numbers["part_size"], numbers["_offsets"]
        self.is_weighed = numbers.get("is_weighed", False)
        self.exclusions.load_state_dict(state)
        self.evidence.load_state_dict(state["evidence"])
        self.batch_trend.load_state_dict(state, value=numbers["trend"], num_reports=numbers["_num_reports"])
        self.is_whole = True

    @functools.cached_property
    def _digest(self) -> str | None:
        return self.digest(self.num_samples)

    def digest(self, count: int) -> str | None:
        """Digest of the first ``count`` names, the same for lists and arrays of them; None without names."""
        if self.sample_ids is None:
            return None
        return hashlib.sha256("\n".join(map(str, self.sample_ids[:count])).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """The facts in which a saved state must agree: sizes, estimator, and a digest of the names."""
        if self.ids is not None:
            return {"num_samples": 0, "batch_size": 1, "estimator": self.estimator, "sample_ids": None}
        return {
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "estimator": self.estimator,
            "sample_ids": self._digest,
        }
