"""The sample table: the running losses with what people call the samples, and in a form that they read."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import whole_number
from .kinds import EXACT
from .running_losses import RunningLosses
from .suspects import Suspects, find_suspects
from .views import Quartile, Sample, quartiles_of, samples_of


class SampleTable(RunningLosses):
    """Running loss and use of every sample; what it learns, and from what, is in `RunningLosses`.

    Args:
        num_samples: N, >= 1.
        batch_size: B, >= 1; sets how fast the trend of the loss follows (half an epoch).
        estimator: How a batch mean is divided: "relative" (default) or "additive" (the seed's rule).
        alpha: Weight of a new observation, in (0, 1]; by default 0.5 for per-sample losses and 0.1 for "additive".
            "relative" does not use it.
        groups: Sequence of N labels (classes), or None.
        sample_ids: Sequence of N names to show in place of indices, or None.

    Raises:
        ValueError: a size below 1, an unknown estimator, an alpha outside (0, 1], or a sequence of another length
            than N.

    Attributes:
        group_labels: The distinct labels, in the order of the codes in ``records``; None without groups.
        group_sizes: How many samples have each; empty without groups.
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
        super().__init__(num_samples, batch_size=batch_size, estimator=estimator, alpha=alpha)
        if sample_ids is not None and (not hasattr(sample_ids, "__getitem__") or len(sample_ids) != self.num_samples):
            raise ValueError(f"sample_ids must have num_samples={self.num_samples} entries, got {_size(sample_ids)}.")
        self.sample_ids = sample_ids
        self.group_labels: NDArray[Any] | None = None
        self.group_sizes: tuple[int, ...] = ()
        if groups is not None:
            self._set_groups(np.asarray(groups))

    def _set_groups(self, groups: NDArray[Any]) -> None:
        if groups.shape != (self.num_samples,):
            raise ValueError(f"groups must have shape ({self.num_samples},), one label a sample, got {groups.shape}.")
        try:
            labels, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        except TypeError as error:
            raise ValueError(f"groups must be labels of one kind, got {groups[:5]!r} and more.") from error
        if len(labels) >= min(self.batch_size, 2**16):
            raise ValueError(
                f"groups must have fewer distinct labels than batch_size={self.batch_size}, got {len(labels)}: "
                "a batch takes at least one sample of each, and 65535 are the most."
            )
        self.group_labels = labels
        self.group_sizes = tuple(sizes.tolist())
        self.records["group"][:] = codes

    def name_of(self, index: int) -> Any:
        """What to call a sample: its entry in ``sample_ids``, else its position."""
        return index if self.sample_ids is None else self.sample_ids[index]

    def hardest(self, k: int = 10) -> list[Sample]:
        """The ``k`` seen samples with the highest estimated loss, highest first."""
        whole_number("k", k, least=0)
        loss = self.loss
        order = np.argsort(-loss, kind="stable")[: min(k, int((~np.isnan(loss)).sum()))]
        return self.describe(order)

    def describe(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """What is known of some samples, in the given order."""
        self.sync()
        chosen = np.asarray(indices, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < self.num_samples:
            raise ValueError(f"indices must be in [0, {self.num_samples}), got {indices!r}.")
        records = self.records.take(chosen)
        return samples_of(chosen, records, self.estimates(records), self.sample_ids)

    def quartiles(self) -> list[Quartile]:
        """The seen samples in four quarters, Q1 (lowest loss) to Q4; empty if fewer than four were seen."""
        return quartiles_of(self.loss, self.usage_count)

    def suspects(self) -> Suspects:
        """Samples that look mislabelled, most suspect first; from 20 % of the training on, at 4 uses or more."""
        self.sync()
        return self.suspects_in(self.records)

    def suspects_in(self, records: Any) -> Suspects:
        """Those among some records of the table; their indices are places in ``records``."""
        exact, by_group = self.part_size == EXACT, self.group_labels is not None
        return find_suspects(records, self.untrained_loss, exact=exact, by_group=by_group)

    @functools.cached_property
    def _digest(self) -> str | None:
        return self.digest(self.num_samples)

    def digest(self, count: int) -> str | None:
        """Of the first ``count`` names, the same for lists and arrays of them; None without names."""
        if self.sample_ids is None:
            return None
        return hashlib.sha256("\n".join(map(str, self.sample_ids[:count])).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a saved state must fit: sizes, estimator, and a digest of the names."""
        return {
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "estimator": self.estimator,
            "sample_ids": self._digest,
        }


def _size(value: Any) -> str:
    return str(len(value)) if hasattr(value, "__len__") else repr(value)
