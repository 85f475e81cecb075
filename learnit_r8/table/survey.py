"""The survey: a summary of the sample table that a screen can show and a file can hold."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .labels.frame import labels_in
from .labels.suspects import Suspects, no_suspects
from .losses import EXACT, WHOLE_BATCH
from .quantiles import loss_histogram, quarters_of, rounded, top, uses_histogram
from .records import ALL, RECORD, spread
from .table import SampleTable, suspects_in

MOST_SCANNED = 2**18
"""Most samples that are read, which takes about 10 ms; of larger tables, a fixed random part of this size is read."""

LISTED = 50
TRACKED = 200
HISTORY = 12
FAIR_PART = 8
"""Largest part whose means still give useful estimates of single samples, as measured in benchmarks/estimators.py."""

SHARE = 0.005
"""Largest share of the training time that surveys may take."""

EVERY_SECONDS = 2.0
EPOCH_SECONDS = 0.5
"""Least training time between two surveys, and before one at the end of an epoch."""

Floats = NDArray[np.float32]


def trust_in(part_size: int | None) -> str:
    """How far per-sample values can be trusted: "exact", "fair" (small parts) or "rough"."""
    if part_size == EXACT:
        return "exact"
    return "rough" if part_size is None or part_size == WHOLE_BATCH or part_size > FAIR_PART else "fair"


class Surveyor:
    """Makes the surveys of one run, and keeps what later ones compare with. It only reads the table.

    Args:
        table: The sample table.
        clock: Returns seconds; measures the time of a survey.
    """

    def __init__(self, table: SampleTable, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._table, self._clock = table, clock
        self._chosen: NDArray[np.int64] | None = None
        self._choose()
        self._cost = self._spent = 0.0
        self._began = self._last = math.nan
        self._ends: deque[Floats] = deque(maxlen=HISTORY)
        self._slice = 0
        self._tracked: dict[int, deque[float]] = {}
        self._flagged = np.empty(0, np.int64)
        nothing = no_suspects("known at the end of an epoch")
        self._suspects = self._listed(nothing, {"usage_count": np.empty(0, np.uint16)}, None, None)

    def _choose(self) -> None:
        """Choose the samples that are read: all, or a random part."""
        self._num_samples = self._table.num_samples
        self._size = min(self._num_samples, MOST_SCANNED)
        if self._size < self._num_samples:
            self._chosen = spread(self._num_samples, self._size)
        self._where = ALL if self._chosen is None else self._chosen

    def is_due(self, seconds: float, *, epoch_ended: bool) -> bool:
        """Whether to make a survey now.

        Args:
            seconds: Training seconds so far.
            epoch_ended: Whether an epoch has just ended.
        """
        if self._began != self._began:
            self._began = self._last = seconds
        saved = SHARE * (seconds - self._began) - self._spent
        if epoch_ended:
            # The cost of the first one is not known yet.
            return not self._spent or (seconds >= self._last + EPOCH_SECONDS and saved >= 0)
        # Leave enough time for the survey at the end of the epoch.
        return seconds >= self._last + EVERY_SECONDS and saved >= 2 * self._cost

    def survey(
        self,
        seconds: float,
        *,
        epoch: int,
        epoch_ended: bool,
        run_ended: bool = False,
        batch_share: tuple[float, ...] = (),
    ) -> dict[str, Any]:
        """Make a survey: the fields of a `SamplesSurveyed`.

        Args:
            seconds: Training seconds so far.
            epoch: The current epoch, 0-based.
            epoch_ended: Whether an epoch has just ended.
            run_ended: Whether the run ends here: suspects are those that its last file of samples will show.
            batch_share: Share of the newest batch in each quarter that it was planned with; empty if unknown.
        """
        began = self._clock()
        now, is_part = self._table.num_samples, self._chosen is not None
        # A random part of a table that grows is drawn anew once there are twice as many.
        if now >= 2 * self._num_samples if is_part else now != self._num_samples:
            self._choose()
            if self._chosen is not None:
                # They are not those of before.
                self._ends.clear()
        known = self._table.read(*(RECORD.names or ()), where=self._where)
        loss, uses = known["loss"], known["usage_count"]
        if epoch_ended and self._chosen is None:
            self._ends.append(loss)
        if epoch_ended or run_ended:
            self._suspects = self._find_suspects(known)
        if self._chosen is None:
            indices = top(loss, LISTED)
            history = self._history_of(indices)
        else:
            indices = self._track(epoch_ended=epoch_ended)
            history = [tuple(self._tracked[index]) for index in indices.tolist()]
        described = self._table.describe(indices)
        found = {
            "epoch": epoch,
            "epoch_ended": epoch_ended,
            "source": self._table.source,
            "trust": trust_in(self._table.storage.part_size),
            "num_read": len(loss),
            "num_seen": int(np.count_nonzero(uses)),
            **quarters_of(loss, uses),
            "batch_share": batch_share,
            **loss_histogram(loss),
            **uses_histogram(uses),
            "hardest": tuple(indices.tolist()),
            "hardest_names": tuple(str(sample.name)[:200] for sample in described),
            "hardest_loss": tuple(rounded(sample.loss) for sample in described),
            "hardest_last": tuple(rounded(sample.last) for sample in described),
            "hardest_uses": tuple(sample.usage_count for sample in described),
            "hardest_history": tuple(history),
            "hardest_suspected": tuple(np.isin(indices, self._flagged).tolist()),
            **self._suspects,
        }
        took = self._clock() - began
        self._cost = max(took, 0.5 * self._cost)
        self._spent += took
        self._last = seconds
        return found

    def _history_of(self, indices: NDArray[np.int64]) -> list[tuple[float, ...]]:
        return [
            tuple(rounded(end[index]) if index < len(end) else math.nan for end in self._ends)
            for index in indices.tolist()
        ]

    def _track(self, *, epoch_ended: bool) -> NDArray[np.int64]:
        """The hardest samples found so far; every survey searches another slice of the data."""
        table, size = self._table, self._size
        start = self._slice * size % table.num_samples
        self._slice += 1
        found = start + top(table.read("loss", where=slice(start, start + size))["loss"], TRACKED)
        candidates = np.union1d(found, np.fromiter(self._tracked, np.int64))
        loss = table.read("loss", where=candidates)["loss"]
        best = top(loss, TRACKED)
        kept = candidates[best].tolist()
        self._tracked = {index: self._tracked.get(index, deque(maxlen=HISTORY)) for index in kept}
        if epoch_ended:
            for index, value in zip(kept, loss[best].tolist(), strict=True):
                self._tracked[index].append(rounded(value))
        return candidates[best[:LISTED]]

    def _find_suspects(self, known: dict[str, NDArray[Any]]) -> dict[str, Any]:
        storage, chosen = self._table.storage, self._chosen
        most = max(1, MOST_SCANNED // storage.evidence.num_places)
        if most < self._size:
            # With many labels a sample, fewer samples.
            part = spread(self._size, most)
            known = {name: values[part] for name, values in known.items()}
            chosen = part if chosen is None else chosen[part]
        evidence = self._table.read_evidence(chosen)
        found = suspects_in(storage, known, evidence)
        self._flagged = found.indices if chosen is None else chosen[found.indices]
        return self._listed(found, known, evidence, chosen)

    def _listed(
        self, found: Suspects, known: dict[str, Any], evidence: Any, chosen: NDArray[np.int64] | None
    ) -> dict[str, Any]:
        """The fields of a survey about the suspects that were found among some samples."""
        storage, rows = self._table.storage, found.indices[:LISTED]
        indices = rows if chosen is None else chosen[rows]
        labels: tuple[list[Any], list[Any]] = ([], [])
        if len(rows):
            labels = labels_in(evidence, known["group"], storage.group_names, rows, found)
        given, suggested = (tuple("" if label is None else str(label)[:60] for label in some) for some in labels)
        return {
            "suspects": tuple(indices.tolist()),
            "suspect_names": tuple(str(storage.name_of(index))[:200] for index in indices.tolist()),
            "suspect_loss": tuple(map(rounded, found.mean_loss[:LISTED])),
            "suspect_uses": tuple(known["usage_count"][rows].tolist()),
            "suspect_history": tuple(self._history_of(indices) if self._chosen is None else [()] * len(indices)),
            "suspect_score": tuple(map(rounded, found.score[:LISTED])),
            "suspect_why": found.why[:LISTED],
            "num_suspects": len(found.indices),
            "noise_rate": rounded(found.noise_rate),
            "no_suspects": found.reason,
            "num_judged": found.num_judged,
            "suspect_given": given if any(given) else (),
            "suspect_suggested": suggested if any(suggested) else (),
        }
