"""The sample table: what you can ask about the samples, at any time and from any thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import is_number, loop_method, whole_number
from .label_noise import find_suspects, rank, suggestions, trust_of
from .labels.evidence import combine
from .labels.frame import label_columns, make_frame
from .labels.overview import Overview
from .labels.suspects import Ranking, Suspects
from .labels.trust import least_trust
from .learner import LossLearner
from .losses import EXACT
from .quantiles import MOST_RANKED, Group, Quartile, Sample, quartiles_of, top_of
from .records import ALL, Columns, Where, spread
from .storage import FIELDS, SampleStorage


class SampleTable:
    """The running loss and use count of every sample, by its index.

    Args:
        num_samples: N, >= 0; 0 if the batches of a run do not say which samples they hold: then nothing is known.
        batch_size: B, >= 1; sets how fast the trend of the loss follows (half an epoch).
        estimator: How a batch mean updates its samples: "relative" (default) or "additive".
        alpha: Weight of a new observation, in (0, 1]; by default 0.5 for per-sample losses and 0.1 for "additive".
            "relative" does not use it.
        groups: Sequence of N labels (classes), or None.
        sample_ids: Sequence of N names to show in place of indices, or None.
        most_ids: Most samples of a table that starts empty and grows with the ids of the user's batches, or None.

    Raises:
        ValueError: a size is below 1, the estimator is unknown, alpha is outside (0, 1], or a sequence has another
            length than N.

    Attributes:
        storage: What is known.
        learner: Learns from reports.
        lock: Held by whoever changes what is known of the samples. Views hold it while they copy some, and never while
            they compute.
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
        most_ids: int | None = None,
    ) -> None:
        self.storage = SampleStorage(
            num_samples, batch_size=batch_size, estimator=estimator, groups=groups, sample_ids=sample_ids,
            most_ids=most_ids,
        )  # fmt: skip
        self.learner = LossLearner(self.storage, alpha=alpha)
        self.lock = self.storage.lock

    @property
    def num_samples(self) -> int:
        """N, as given; of a table that grows, the samples so far."""
        return self.storage.num_samples

    @property
    def batch_size(self) -> int:
        """B, as given; of a table that grows, that of the largest of the first batches."""
        return self.storage.batch_size

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"SampleTable({self.num_samples:,} samples, losses: {self.source})"

    @property
    def source(self) -> str:
        """The source of the estimates: "exact", "parts of 4", "batch means of 32" or "nothing yet"."""
        return self.storage.source

    @property
    def trend(self) -> float:
        """Moving average of the batch losses; NaN before the first."""
        return self.storage.batch_trend.value

    @property
    def untrained_loss(self) -> float:
        """The loss of an untrained model; NaN before the first report. See `UntrainedLoss`."""
        return self.storage.untrained_loss

    @property
    def num_seen(self) -> int:
        """Number of samples that were learned from at least once."""
        return self.storage.num_seen

    @property
    def quarantined(self) -> NDArray[np.int64]:
        """int64[K], the samples that are no longer drawn, in order; read-only."""
        return self.storage.exclusions.quarantined

    @property
    def loss(self) -> NDArray[np.float32]:
        """float32[N], estimated loss of every sample, NaN for unseen ones; a new array each time."""
        return self.read("loss")["loss"]

    avg_loss = loss

    @property
    def last(self) -> NDArray[np.float32]:
        """float32[N], the last observed loss that each sample was part of, NaN for unseen ones."""
        return self.read("last")["last"]

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32[N], mean of the observed losses that each sample was part of, NaN for unseen ones."""
        return self.read("mean")["mean"]

    @property
    def usage_count(self) -> NDArray[np.uint16]:
        """uint16[N], times each sample was learned from, at most 65535."""
        return self.read("usage_count")["usage_count"]

    @property
    def given(self) -> NDArray[Any]:
        """int64[N], the label of every sample as reported with predictions; -1 where none were.

        With P labels a sample int64[N, P]; of regression float64[N], NaN where none were.
        """
        return self._labels("given")

    @property
    def suggested(self) -> NDArray[Any]:
        """int64[N] as `given`, the class other than the label predicted most for each; -1 where there is none.

        Of regression float64[N], the value expected.
        """
        return self._labels("suggested")

    def _labels(self, name: str) -> NDArray[Any]:
        evidence = self._columns()[1]
        if evidence is None:
            return np.full(self.num_samples, -1)
        found: NDArray[Any] = suggestions(evidence, np.arange(len(evidence)))[name]
        return found if len(found) == self.num_samples else found.reshape(self.num_samples, -1)

    def read(self, *fields: str, where: Where = ALL) -> dict[str, NDArray[Any]]:
        """Copies of fields of all samples, or of some; see `SampleStorage.read`."""
        self.learner.hand_over()
        return self.storage.read(fields, where)

    def read_evidence(self, where: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]] | None:
        """Copies of the fields of the evidence about all samples, or int64[M] of them; None without predictions.

        With P labels a sample, those of all labels of each sample, one sample after the other.
        """
        evidence, width = self._columns()[1], self.storage.evidence.num_places
        if evidence is None:
            return None
        at = None if where is None else (where[:, None] * width + np.arange(width)).reshape(-1)
        return evidence.read(*evidence.names, where=at)

    def _columns(self) -> tuple[Columns, Columns | None]:
        """What is known of the samples, and the evidence, to be read block by block; None without predictions."""
        self.learner.hand_over()
        records = self.storage.evidence.records
        known = Columns(self.num_samples, self.storage.read)
        if records is None:
            return known, None
        names = records.whole.dtype.names
        return known, Columns(len(records), lambda fields, where: records.columns(fields, self.lock, where), names)

    def describe(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """The figures of some samples, in the given order."""
        chosen = np.asarray(indices, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.num_samples:
            raise ValueError(f"indices must be in [0, {self.num_samples}), got {indices!r}.")
        known = self.read(*FIELDS, where=chosen)
        rows = zip(chosen.tolist(), *(known[name].tolist() for name in FIELDS), strict=True)
        return [Sample(index, self.storage.name_of(index), *figures) for index, *figures in rows]

    @loop_method
    def hardest(self, k: int = 10) -> list[Sample]:
        """The ``k`` seen samples with the highest estimated loss, highest first."""
        k = whole_number("k", k, least=0)
        blocks = self._columns()[0].blocks("loss", least=k)
        return self.describe(top_of(((start, known["loss"]) for start, known in blocks), k))

    def quartiles(self) -> list[Quartile]:
        """The seen samples in four quarters, Q1 (lowest loss) to Q4; empty if fewer than four were seen.

        Of more than two million samples, a random part of that many is read.
        """
        is_part = self.num_samples > MOST_RANKED
        where = spread(self.num_samples, MOST_RANKED) if is_part else ALL
        known = self.read("loss", "usage_count", where=where)
        return quartiles_of(known["loss"], known["usage_count"], self.num_seen if is_part else None)

    def groups(self) -> list[Group]:
        """The groups of ``groups=`` with the mean loss of their samples, the highest first; empty without groups."""
        labels = self.storage.group_labels
        if labels is None:
            return []
        sums, seen = np.zeros(len(labels)), np.zeros(len(labels), np.int64)
        for _, known in self._columns()[0].blocks("loss", "group"):
            is_seen = ~np.isnan(known["loss"])
            codes = known["group"][is_seen]
            sums += np.bincount(codes, known["loss"][is_seen], len(labels))
            seen += np.bincount(codes, minlength=len(labels))
        means = np.divide(sums, seen, out=np.full(len(labels), np.nan), where=seen > 0)
        columns = labels.tolist(), self.storage.group_sizes, seen.tolist(), means.tolist()
        found = [Group(*values) for values in zip(*columns, strict=True)]
        return sorted(found, key=lambda group: (not group.num_seen, -group.mean if group.num_seen else 0.0))

    def suspects(self, precision: float = 0.5, *, runs: Sequence[Any] = ()) -> Suspects:
        """Samples that look mislabelled, most suspect first; only samples with at least 4 uses are judged.

        Without predictions, they are known only if the losses fall into two groups, as in networks that fit their
        data. For other networks, report predictions with the losses; see `find_suspects`.

        Args:
            precision: Least share of the list to be wrong, as estimated, in (0, 1): the higher, the shorter the list.
                Where losses had weights, margins from before that are judged; see `Suspects.caution`.
            runs: Schedulers, or their tables, of other trainings on the same samples, with other seeds; their
                predictions are combined with those of this run.

        Raises:
            ValueError: ``precision`` is outside its range; a run has other samples, or no predictions.
            TypeError: a run is none.
        """
        if not (is_number(precision) and 0 < precision < 1):
            is_count = is_number(precision) and precision >= 1
            meant = f"; for the {precision:g} most suspect, call ranking({precision:g})" if is_count else ""
            raise ValueError(f"precision must be in (0, 1), got {precision!r}{meant}.")
        known, evidence = self._columns()
        if len(runs):
            others: list[SampleTable] = [getattr(run, "table", run) for run in runs]
            for run, other in zip(runs, others, strict=True):
                if not isinstance(other, SampleTable):
                    raise TypeError(f"runs must be schedulers or their tables, got {run!r}.")
            several = combine(self.read_evidence(), [each.read_evidence() for each in others])
            trust = least_trust(trust_of(*each._columns(), each.storage.trust) for each in (self, *others))
            return suspects_in(self.storage, known, several, precision, trust)
        return suspects_in(self.storage, known, evidence, precision)

    def ranking(self, top: int = 100) -> Ranking:
        """The samples whose labels are most suspect, in order; not a verdict, as some are the most suspect anywhere.

        Args:
            top: Most samples to list, >= 0.
        """
        whole_number("top", top, least=0)
        return rank(*self._columns(), top)

    def to_frame(self, library: str | None = None) -> Any:
        """A data frame with a row for each sample, for tools that clean data.

        Args:
            library: "pandas" or "polars"; by default the one that is imported already, else the one that is installed.

        Returns:
            The columns of cleanlab: is_label_issue; label_score in [0, 1], 0 = bad; given_label and predicted_label,
            missing where unknown. Then our own: sample (its name or index), loss, last, mean, uses; for suspects score
            and why; and from predictions margin, variability, confidence, learned and forgotten, see `Overview`.

        Raises:
            ImportError: neither library is installed, or not the one you asked for.
            ValueError: ``library`` is neither of them.
        """
        known, evidence = self.read(*FIELDS, "group"), self.read_evidence()
        verdict, names = suspects_in(self.storage, known, evidence), list(map(self.storage.name_of, range(len(self))))
        columns = label_columns(known, verdict, evidence, names=names, group_labels=self.storage.group_names)
        return make_frame(columns, library)

    def overview(self) -> Overview:
        """How every sample was learnt, by the predictions of its visits: the data at a glance.

        Without predictions all is unknown.
        """
        return Overview.of(self.last, self.read_evidence())

    def forget_labels(self) -> None:
        """Forget what predictions have shown, as labels mean something else from now on; the losses stay."""
        self.learner.hand_over()
        with self.lock:
            self.storage.evidence.load_state_dict(None)

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, with the reports held back; see `SampleStorage.state_dict`."""
        self.learner.hand_over()
        return self.storage.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; groups stay unchanged."""
        self.storage.load_state_dict(state)


def suspects_in(
    storage: SampleStorage, known: Any, evidence: Any = None, precision: float = 0.5, trust: str | None = None
) -> Suspects:
    """The suspects among some samples of a table, by their fields and the evidence; indices are positions in these.

    Args:
        trust: As for `find_suspects`; by default that of the table.
    """
    return find_suspects(
        known,
        storage.untrained_loss,
        exact=storage.part_size == EXACT,
        by_group=storage.group_labels is not None,
        evidence=evidence,
        precision=precision,
        trust=storage.trust if trust is None else trust,
    )
