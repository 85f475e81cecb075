"""Views of the sample table for users: single samples, and quartiles by loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """The figures of one sample.

    Attributes:
        index: Its index in [0, N).
        name: Its entry in ``sample_ids``, otherwise the index.
        loss: Estimated loss.
        last: Last observed loss that it was part of.
        mean: Mean of the observed losses that it was part of.
        usage_count: Times learned from.
    """

    index: int
    name: Any
    loss: float
    last: float
    mean: float
    usage_count: int


@dataclass(frozen=True)
class Quartile:
    """One quarter of the seen samples, by estimated loss.

    Attributes:
        low, high: Smallest and largest estimate.
        mean: Mean estimate.
        num_samples: Number of samples.
        uses: Mean number of times they were learned from.
    """

    low: float
    high: float
    mean: float
    num_samples: int
    uses: float


def quartiles_of(loss: NDArray[np.float32], usage_count: NDArray[np.uint16]) -> list[Quartile]:
    """The seen samples in four quarters, Q1 (lowest loss) to Q4.

    Args:
        loss: float32[N], NaN for unseen samples.
        usage_count: uint16[N].

    Returns:
        Four quarters whose sizes differ by at most one; empty if fewer than four samples were seen.
    """
    seen = np.flatnonzero(~np.isnan(loss))
    if len(seen) < 4:
        return []
    ranked = seen[np.argsort(loss[seen], kind="stable")]
    return [
        Quartile(
            low=float(loss[quarter[0]]),
            high=float(loss[quarter[-1]]),
            mean=float(loss[quarter].mean(dtype=np.float64)),
            num_samples=len(quarter),
            uses=float(usage_count[quarter].mean()),
        )
        for quarter in np.array_split(ranked, 4)
    ]


def samples_of(
    indices: NDArray[np.int64],
    records: NDArray[Any],
    loss: NDArray[np.float32],
    names: Sequence[Any] | None,
) -> list[Sample]:
    """The figures of some samples.

    Args:
        indices: int64[M], the samples.
        records: RECORD[M].
        loss: float32[M], their estimated losses.
        names: N names, or None to show the indices.
    """
    return [
        Sample(
            index=index,
            name=index if names is None else names[index],
            loss=float(loss[row]),
            last=float(records["last"][row]) if records["usage_count"][row] else math.nan,
            mean=float(records["mean"][row]) if records["usage_count"][row] else math.nan,
            usage_count=int(records["usage_count"][row]),
        )
        for row, index in enumerate(indices.tolist())
    ]
