"""The survey: what the table knows of the samples, in a form that a screen can show and a file can hold."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .kinds import EXACT, WHOLE_BATCH
from .suspects import find_suspects
from .table import SampleTable

MOST_SCANNED = 2**18
"""Samples up to which all of them are read, about 10 ms; of more a fixed random part of this size is."""

LISTED = 50
TRACKED = 200
HISTORY = 12
BINS = 32
LOG_RATIO = 20
FAIR_PART = 8
"""Largest part whose means still say something of the single samples: see ``kinds`` and DESIGN section 5."""

SHARE = 0.005
"""Most of the training time that surveys may take."""

EVERY_SECONDS = 2.0
EPOCH_SECONDS = 0.5
"""Least training time between two surveys, and before one at the end of an epoch."""

_UNSEEN = 4

Floats = NDArray[np.float32]


def trust_in(part_size: int | None) -> str:
    """How far per-sample values can be trusted: "exact", "fair" (small parts) or "rough"."""
    if part_size == EXACT:
        return "exact"
    return "rough" if part_size is None or part_size == WHOLE_BATCH or part_size > FAIR_PART else "fair"


class Quarters(NamedTuple):
    """Samples in four quarters by loss, Q1 (lowest) first.

    Attributes:
        codes: uint8[M], the quarter of each sample, 0 to 3; 4 where never seen.
        rows: Fields of `SamplesSurveyed` that have a value for each quarter; empty with fewer than four samples.
    """

    codes: NDArray[np.uint8]
    rows: dict[str, tuple[float, ...]]


def quarters_of(loss: Floats, uses: NDArray[np.uint16]) -> Quarters:
    """Divide the seen samples into four quarters whose sizes differ by at most one.

    Args:
        loss: float32[M], NaN where never seen.
        uses: uint16[M].
    """
    codes = np.full(len(loss), _UNSEEN, np.uint8)
    seen = np.flatnonzero(~np.isnan(loss))
    names = ("low", "high", "mean", "share", "uses")
    if len(seen) < 4:
        return Quarters(codes, dict.fromkeys(names, ()))
    values = loss[seen]
    # The same sizes as numpy.array_split.
    each, more = divmod(len(seen), 4)
    ends = np.cumsum([each + (place < more) for place in range(4)])
    order = np.argpartition(values, ends[:3])
    rows: dict[str, list[float]] = {name: [] for name in names}
    for place, part in enumerate(np.split(order, ends[:3])):
        codes[seen[part]] = place
        of_part = values[part]
        rows["low"].append(_rounded(of_part.min()))
        rows["high"].append(_rounded(of_part.max()))
        rows["mean"].append(_rounded(of_part.mean(dtype=np.float64)))
        rows["share"].append(_rounded(len(part) / len(seen)))
        rows["uses"].append(_rounded(uses[seen[part]].mean()))
    return Quarters(codes, {name: tuple(values) for name, values in rows.items()})


def flow_between(before: NDArray[np.uint8], now: NDArray[np.uint8]) -> tuple[float, ...]:
    """Share of the samples that were in quarter i and are in quarter j: 16 numbers, row by row; none if none was seen.

    >>> flow_between(np.uint8([0, 0, 1, 4]), np.uint8([0, 1, 1, 3]))[:6]
    (0.33333, 0.33333, 0.0, 0.0, 0.0, 0.33333)
    """
    both = (before < _UNSEEN) & (now < _UNSEEN)
    moves = np.bincount(before[both].astype(np.int64) * 4 + now[both], minlength=16)
    total = int(moves.sum())
    return tuple(_rounded(count / total) for count in moves) if total else ()


def loss_histogram(loss: Floats) -> dict[str, Any]:
    """Seen losses in bins up to the 99.5th percentile; the last bin holds those above.

    The bins are of equal width, or of equal ratio where all losses are > 0 and most of them differ by more than a
    factor of 20.
    """
    seen = loss[~np.isnan(loss)]
    if not len(seen):
        return {"loss_range": (), "loss_is_log": False, "loss_counts": ()}
    # A few thousand values say where most of them lie.
    few = seen[:: max(1, len(seen) // 4096)]
    low, high = float(seen.min()), float(np.quantile(few, 0.995))
    is_log = low > 0 and float(np.quantile(few, 0.95)) > LOG_RATIO * float(np.quantile(few, 0.05))
    if is_log:
        low, values = float(np.quantile(few, 0.005)), np.log(seen)
        first, last = math.log(low), math.log(high)
    else:
        first, last, values = low, high, seen
    width = (last - first) / BINS
    ends = (_rounded(low), _rounded(high))
    if not width > 0 or not math.isfinite(width):
        return {"loss_range": ends, "loss_is_log": False, "loss_counts": (len(seen),)}
    places = np.clip((values - np.float32(first)) / np.float32(width), 0, BINS - 1).astype(np.int64)
    counts = np.bincount(places, minlength=BINS)
    return {"loss_range": ends, "loss_is_log": is_log, "loss_counts": tuple(counts.tolist())}


def uses_histogram(uses: NDArray[np.uint16]) -> dict[str, tuple[int, ...]]:
    """Uses in at most 32 bins of equal width, from the lowest to the highest."""
    low, high = int(uses.min()), int(uses.max())
    width = -(-(high - low + 1) // BINS)
    counts = np.bincount((uses.astype(np.int64) - low) // width)
    return {"uses_range": (low, high), "uses_counts": tuple(counts.tolist())}


def top(values: Floats, count: int) -> NDArray[np.int64]:
    """Positions of the highest values, highest first; NaN is never among them."""
    known = np.flatnonzero(~np.isnan(values))
    if len(known) > count:
        known = known[np.argpartition(-values[known], count - 1)[:count]]
    return known[np.argsort(-values[known], kind="stable")]


def _rounded(value: Any) -> float:
    """Five digits: as much as a screen shows, and half the bytes."""
    return float(f"{float(value):.5g}")


class Surveyor:
    """Makes the surveys of one run, and remembers what they compare with. It reads the table and changes nothing.

    Args:
        table: What is known of every sample.
        clock: Returns seconds; measures what a survey takes.
        most_scanned: Samples up to which all of them are read.
    """

    def __init__(
        self,
        table: SampleTable,
        *,
        clock: Callable[[], float] = time.perf_counter,
        most_scanned: int = MOST_SCANNED,
    ) -> None:
        self._table = table
        self._clock = clock
        self._size = min(table.num_samples, most_scanned)
        self._chosen: NDArray[np.int64] | None = None
        if self._size < table.num_samples:
            # With replacement: a few are read twice, and no permutation of N is made.
            drawn = np.random.default_rng(0).integers(0, table.num_samples, self._size)
            self._chosen = np.unique(drawn)
        self._cost = self._spent = 0.0
        self._began = self._last = math.nan
        self._flow: tuple[float, ...] = ()
        self._codes: NDArray[np.uint8] | None = None
        self._ends: deque[NDArray[np.float16]] = deque(maxlen=HISTORY)
        self._slice = 0
        self._tracked: dict[int, deque[float]] = {}
        self._flagged = np.empty(0, np.int64)
        self._suspects: dict[str, Any] = _no_suspects("known at the end of an epoch")

    def is_due(self, seconds: float, *, epoch_ended: bool) -> bool:
        """Whether to make one now.

        Args:
            seconds: Training seconds so far.
            epoch_ended: Whether an epoch has just ended.
        """
        if self._began != self._began:
            self._began = self._last = seconds
        saved = SHARE * (seconds - self._began) - self._spent
        if epoch_ended:
            # The first one cannot know what it costs.
            return not self._spent or (seconds >= self._last + EPOCH_SECONDS and saved >= 0)
        # Enough is kept back for the end of the epoch.
        return seconds >= self._last + EVERY_SECONDS and saved >= 2 * self._cost

    def survey(
        self, seconds: float, *, epoch: int, epoch_ended: bool, last_batch: NDArray[np.int64] | None = None
    ) -> dict[str, Any]:
        """The fields of a `SamplesSurveyed`.

        Args:
            seconds: Training seconds so far.
            epoch: The current epoch, 0-based.
            epoch_ended: Whether an epoch has just ended.
            last_batch: int64[B], samples of the newest batch.
        """
        began = self._clock()
        table = self._table
        table.sync()
        records = table.records.take(self._chosen) if self._chosen is not None else table.records.whole
        loss, uses = table.estimates(records), records["usage_count"]
        quarters = quarters_of(loss, uses)
        if epoch_ended:
            self._remember(loss, quarters.codes)
            self._suspects = self._find_suspects(records)
        fields = {
            "epoch": epoch,
            "epoch_ended": epoch_ended,
            "source": table.source,
            "trust": trust_in(table.part_size),
            "num_read": len(loss),
            "num_seen": int(np.count_nonzero(uses)),
            **quarters.rows,
            "batch_share": self._shares(last_batch, quarters),
            "flow": self._flow,
            **loss_histogram(loss),
            **uses_histogram(uses),
            **self._hardest(loss, epoch_ended=epoch_ended),
            **self._suspects,
        }
        took = self._clock() - began
        self._cost = max(took, 0.5 * self._cost)
        self._spent += took
        self._last = seconds
        return {**fields, "survey_seconds": _rounded(took)}

    def _remember(self, loss: Floats, codes: NDArray[np.uint8]) -> None:
        if self._codes is not None:
            self._flow = flow_between(self._codes, codes)
        self._codes = codes
        if self._chosen is None:
            self._ends.append(np.clip(loss, -6e4, 6e4).astype(np.float16))

    def _shares(self, batch: NDArray[np.int64] | None, quarters: Quarters) -> tuple[float, ...]:
        """Share of a batch in each quarter, by the bounds of now."""
        if batch is None or not len(batch) or not quarters.rows["high"]:
            return ()
        if self._chosen is None:
            codes = quarters.codes[batch]
        else:
            loss = self._table.estimates(self._table.records.take(batch))
            codes = np.searchsorted(np.array(quarters.rows["high"][:3], np.float32), loss).astype(np.uint8)
        counts = np.bincount(codes, minlength=4)[:4]
        return tuple(_rounded(count / len(batch)) for count in counts)

    def _hardest(self, loss: Floats, *, epoch_ended: bool) -> dict[str, tuple[Any, ...]]:
        if self._chosen is None:
            indices = top(loss, LISTED)
            history = self._history_of(indices)
        else:
            indices = self._track(epoch_ended=epoch_ended)
            history = [tuple(self._tracked[index]) for index in indices.tolist()]
        described = self._table.describe(indices)
        return {
            "hardest": tuple(indices.tolist()),
            "hardest_names": tuple(str(sample.name)[:200] for sample in described),
            "hardest_loss": tuple(_rounded(sample.loss) for sample in described),
            "hardest_last": tuple(_rounded(sample.last) for sample in described),
            "hardest_uses": tuple(sample.usage_count for sample in described),
            "hardest_history": tuple(history),
            "hardest_suspected": tuple(np.isin(indices, self._flagged).tolist()),
        }

    def _history_of(self, indices: NDArray[np.int64]) -> list[tuple[float, ...]]:
        return [tuple(_rounded(end[index]) for end in self._ends) for index in indices.tolist()]

    def _track(self, *, epoch_ended: bool) -> NDArray[np.int64]:
        """The hardest of those met so far: with every survey another slice of the data is looked through."""
        table, size = self._table, self._size
        start = self._slice * size % table.num_samples
        self._slice += 1
        records = table.records.whole[start : start + size]
        found = start + top(table.estimates(records), TRACKED)
        candidates = np.union1d(found, np.fromiter(self._tracked, np.int64))
        loss = table.estimates(table.records.take(candidates))
        best = top(loss, TRACKED)
        kept = candidates[best].tolist()
        self._tracked = {index: self._tracked.get(index, deque(maxlen=HISTORY)) for index in kept}
        if epoch_ended:
            for index, value in zip(kept, loss[best].tolist(), strict=True):
                self._tracked[index].append(_rounded(value))
        return candidates[best[:LISTED]]

    def _find_suspects(self, records: NDArray[Any]) -> dict[str, Any]:
        table = self._table
        found = find_suspects(
            records, table.untrained_loss, exact=table.part_size == EXACT, by_group=table.group_labels is not None
        )
        self._flagged = found.indices if self._chosen is None else self._chosen[found.indices]
        if found.reason:
            return _no_suspects(found.reason)
        rows = found.indices[:LISTED]
        indices = rows if self._chosen is None else self._chosen[rows]
        return {
            "suspects": tuple(indices.tolist()),
            "suspect_names": tuple(str(table.name_of(index))[:200] for index in indices.tolist()),
            "suspect_loss": tuple(map(_rounded, found.mean_loss[:LISTED])),
            "suspect_uses": tuple(records["usage_count"][rows].tolist()),
            "suspect_history": tuple(self._history_of(indices) if self._chosen is None else [()] * len(indices)),
            "suspect_score": tuple(map(_rounded, found.score[:LISTED])),
            "suspect_why": found.why[:LISTED],
            "num_suspects": len(found.indices),
            "noise_rate": _rounded(found.noise_rate),
            "no_suspects": "",
        }


def _no_suspects(reason: str) -> dict[str, Any]:
    return {
        "suspects": (),
        "suspect_names": (),
        "suspect_loss": (),
        "suspect_uses": (),
        "suspect_history": (),
        "suspect_score": (),
        "suspect_why": (),
        "num_suspects": 0,
        "noise_rate": math.nan,
        "no_suspects": reason,
    }
