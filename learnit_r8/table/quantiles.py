"""Views of the sample table for users: single samples, and quartiles by loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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


def quartiles_of(
    loss: NDArray[np.float32], usage_count: NDArray[np.uint16], num_seen: int | None = None
) -> list[Quartile]:
    """The seen samples in four quarters, Q1 (lowest loss) to Q4.

    Args:
        loss: float32[N], NaN for unseen samples.
        usage_count: uint16[N].
        num_seen: Number of seen samples that these are a random part of; None where these are all.

    Returns:
        Four quarters whose sizes differ by at most one; empty if fewer than four samples were seen.
    """
    found = []
    for part in quarters(loss):
        some, uses = loss[part], float(usage_count[part].mean())
        mean = float(some.mean(dtype=np.float64))
        found.append(Quartile(float(some.min()), float(some.max()), mean, len(some), uses))
    if num_seen is None:
        return found
    return [replace(each, num_samples=(num_seen + 3 - place) // 4) for place, each in enumerate(found)]


def quarters(loss: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """The indices of the seen samples in four groups by loss, lowest first; none if fewer than four were seen.

    Args:
        loss: float32[N], NaN for unseen samples.
    """
    seen = np.flatnonzero(~np.isnan(loss))
    if len(seen) < 4:
        return []
    # The same sizes as numpy.array_split.
    each, more = divmod(len(seen), 4)
    ends = np.cumsum([each + (place < more) for place in range(3)])
    return [seen[part] for part in np.split(np.argpartition(loss[seen], ends), ends)]


MOST_RANKED = 2**21
"""Most samples that are ranked. Larger data is divided into this many stretches, and one sample of each is ranked:
with a probability of 99.5 %, the limits of the quarters are within 0.1 % of N of their ranks."""


class Group(NamedTuple):
    """The samples with one label of ``groups=``.

    Attributes:
        label: The label.
        num_samples: How many there are.
        num_seen: How many of them were learned from at least once.
        mean: Mean of the estimated losses of those; NaN without any.
    """

    label: Any
    num_samples: int
    num_seen: int
    mean: float


BINS = 32
LOG_RATIO = 20

Floats = NDArray[np.float32]


def quarters_of(loss: Floats, uses: NDArray[np.uint16]) -> dict[str, tuple[float, ...]]:
    """Fields of `SamplesSurveyed` with a value for each quarter of the seen samples; empty with fewer than four.

    Args:
        loss: float32[M], NaN for unseen samples.
        uses: uint16[M], use counts.
    """
    found = quartiles_of(loss, uses)
    num_seen = sum(quarter.num_samples for quarter in found)
    names = ("low", "high", "mean", "uses")
    rows = {name: tuple(rounded(getattr(quarter, name)) for quarter in found) for name in names}
    return {**rows, "share": tuple(rounded(quarter.num_samples / num_seen) for quarter in found)}


def loss_histogram(loss: Floats) -> dict[str, Any]:
    """Histogram of the losses of seen samples, up to the 99.5th percentile; the last bin also holds those above.

    Bins have equal width, or equal ratio if all losses are > 0 and most of them spread over more than a factor of 20.
    """
    seen = loss[~np.isnan(loss)]
    if not len(seen):
        return {"loss_range": (), "loss_is_log": False, "loss_counts": ()}
    # A few thousand values suffice for the percentiles.
    few = seen[:: max(1, len(seen) // 4096)]
    low, high = float(seen.min()), float(np.quantile(few, 0.995))
    is_log = low > 0 and float(np.quantile(few, 0.95)) > LOG_RATIO * float(np.quantile(few, 0.05))
    if is_log:
        low, values = float(np.quantile(few, 0.005)), np.log(seen)
        first, last = math.log(low), math.log(high)
    else:
        first, last, values = low, high, seen
    width = (last - first) / BINS
    ends = (rounded(low), rounded(high))
    if not width > 0 or not math.isfinite(width):
        return {"loss_range": ends, "loss_is_log": False, "loss_counts": (len(seen),)}
    places = np.clip((values - np.float32(first)) / np.float32(width), 0, BINS - 1).astype(np.int64)
    counts = np.bincount(places, minlength=BINS)
    return {"loss_range": ends, "loss_is_log": is_log, "loss_counts": tuple(counts.tolist())}


def uses_histogram(uses: NDArray[np.uint16]) -> dict[str, tuple[int, ...]]:
    """Histogram of use counts, in at most 32 bins of equal width from the lowest to the highest."""
    low, high = int(uses.min()), int(uses.max())
    width = -(-(high - low + 1) // BINS)
    counts = np.bincount((uses.astype(np.int64) - low) // width)
    return {"uses_range": (low, high), "uses_counts": tuple(counts.tolist())}


def top(values: Floats, count: int) -> NDArray[np.int64]:
    """int64[<= count], indices of the highest values, highest first, of equal ones the first; NaN is left out."""
    return top_of([(0, values)], count)


def top_of(blocks: Iterable[tuple[int, Floats]], count: int) -> NDArray[np.int64]:
    """As `top`, of values that come block by block, each with the index of its first.

    What is not above the highest so far is compared once, and never copied or sorted. Blocks should have at least
    ``count`` values.
    """
    best, high = np.empty(0, np.int64), np.empty(0, np.float32)
    for start, block in blocks:
        is_found = block > (high[-1] if count else np.inf) if len(best) >= count else ~np.isnan(block)
        found = np.flatnonzero(is_found)
        if not len(found):
            continue
        values = block[found]
        if count < len(found):
            is_high = values >= -np.partition(-values, count - 1)[count - 1]
            found, values = found[is_high], values[is_high]
        best, high = np.concatenate([best, found + start]), np.concatenate([high, values])
        order = np.argsort(-high, kind="stable")[:count]
        best, high = best[order], high[order]
    return best


def rounded(value: Any) -> float:
    """Round to five digits: as many as a screen shows, in half the bytes."""
    return float(f"{float(value):.5g}")
