"""The data at a glance: how every sample was learnt, by its margins, and what that says of each class and of the model.

The map of the samples, mean margin against variability: Swayamdipta et al. (arXiv:2009.10795), with the margin in place
of the label's probability. Learnt when, and forgotten how often: Toneva et al. (arXiv:1812.05159).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..names import class_names_of

Floats = NDArray[np.float32]

BINS = 10
"""Bins of the confidence."""

CLOSE, MOST_OTHER = 0.02, 0.02
"""By how much a cross entropy may be outside the range that its margin allows, as margins are kept in half precision;
and the share of samples beyond, from which the losses are no cross entropies of these predictions."""


FARTHEST = 100.0
"""No margin that was kept is beyond this; a damaged file may hold any number."""

EVERYWHERE = (-math.inf, math.inf)


class Calibration(NamedTuple):
    """How often the class predicted was the label, by how sure the model was, at the last visit of each sample.

    Attributes:
        counts: int64[10], samples with a confidence in each tenth of [0, 1].
        confidence: float64[10], their mean confidence; NaN without samples.
        accuracy: float64[10], the share of them whose label was predicted.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error, the mean distance of the two; NaN without samples."""
        return self.mean(np.abs(self.confidence - self.accuracy))

    def mean(self, values: NDArray[np.float64]) -> float:
        """The mean of ``confidence`` or ``accuracy`` over the samples; NaN without any."""
        total = self.counts.sum()
        return float(np.nansum(values * self.counts) / total) if total else math.nan


class ClassQuality(NamedTuple):
    """What is known of the samples with one label.

    Attributes:
        label: Its name, else its number.
        size: Samples with it.
        accuracy: Share of them whose label was predicted at the last visit.
        margin: Mean of their mean margins: below 0, the label mostly wins.
        learned: Median of the first visits at which the label was predicted; NaN if of most it never was.
        forgotten: Mean number of times it was predicted at a visit and was not at the next.
        num_suspects: Samples that look mislabelled.
        rival: The class predicted most in its place at the last visits; None if there is none.
    """

    label: Any
    size: int
    accuracy: float
    margin: float
    learned: float
    forgotten: float
    num_suspects: int
    rival: Any


class Overview(NamedTuple):
    """What the visits of all samples say, one entry for each; see `SampleTable.overview`.

    Attributes:
        margin: float32[N], mean over all visits of the margin, by which the strongest other class beats the label; NaN
            where unknown, here and below.
        variability: float32[N], standard deviation of the margin over the visits.
        confidence: float32[N] in [0, 1], the probability of the predicted class at the last visit; NaN for all unless
            the losses are the cross entropies of the predictions, without weights or smoothing.
        learned: float32[N], the first visit at which the label was predicted, counted from 1; NaN if none was, too.
        forgotten: float32[N], how often the label was predicted at a visit and was not at the next.
        given: int64[N], the label; -1 where unknown.
        predicted: int64[N], the class predicted at the last visit; -1 where unknown.
        memorised: Of the samples for which another class was preferred at the first visits, the share whose label was
            predicted at the last one; NaN without any. In benchmarks/verdicts.py .87 or more where a network learns
            wrong labels by heart, and .30 or less where it does not fit its data.
    """

    margin: Floats
    variability: Floats
    confidence: Floats
    learned: Floats
    forgotten: Floats
    given: NDArray[np.int64]
    predicted: NDArray[np.int64]
    memorised: float = math.nan

    @classmethod
    def of(cls, last: Floats, evidence: Mapping[str, NDArray[Any]] | None) -> Overview:
        """The overview of N samples.

        Args:
            last: float32[N], their last losses.
            evidence: The fields of `EVIDENCE` by name, N each; None without predictions. Of several labels a
                sample, and of numbers, all is unknown.
        """
        if evidence is None or (isinstance(evidence, dict) and "learned" not in evidence):
            unknown, no_class = np.full(len(last), np.float32("nan")), np.full(len(last), -1)
            return cls(unknown, unknown, unknown, unknown, unknown, no_class, no_class)
        known, nan = (evidence["visits"] > 0) & np.isfinite(evidence["mean_margin"]), np.float32("nan")
        learned = evidence["learned"].astype(np.float32)
        given, predicted = (np.where(known, evidence[name].astype(np.int64), -1) for name in ("given", "predicted"))
        doubted = known & (evidence["early"] > 0)
        return cls(
            margin=np.where(known, evidence["mean_margin"], nan),
            variability=np.where(known, np.sqrt(np.fmax(evidence["variance"], 0)), nan),
            confidence=np.where(known, _confidence(last, evidence, known), nan),
            learned=np.where(learned > 0, learned, nan),
            forgotten=np.where(known, evidence["forgotten"].astype(np.float32), nan),
            given=given,
            predicted=predicted,
            memorised=float((predicted == given)[doubted].mean()) if doubted.any() else math.nan,
        )

    @property
    def is_known(self) -> bool:
        """Whether there are predictions of any sample."""
        return bool((self.given >= 0).any())

    def region(
        self, margin: tuple[float, float] = EVERYWHERE, variability: tuple[float, float] = EVERYWHERE
    ) -> NDArray[np.int64]:
        """int64[K], the samples in a part of the map, in order.

        Args:
            margin: The lowest mean margin, and one that is above all of theirs.
            variability: The same for the variability.

        Raises:
            ValueError: a range is none.
        """
        inside = np.ones(len(self.margin), bool)
        for name, (low, high) in (("margin", margin), ("variability", variability)):
            if not low <= high:
                raise ValueError(f"{name} must be a range (low, high) with low <= high, got {(low, high)!r}.")
            values = getattr(self, name).astype(np.float64)
            inside &= (values >= low) & (values < high)
        return np.flatnonzero(inside)

    def calibration(self) -> Calibration | None:
        """How sure the model was, and how often rightly; None where the confidence is unknown."""
        known = np.isfinite(self.confidence)
        if not known.any():
            return None
        confidence = self.confidence[known].astype(np.float64)
        place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        is_right = (self.given == self.predicted)[known]
        counts = np.bincount(place, minlength=BINS)
        with np.errstate(invalid="ignore"):
            return Calibration(
                counts,
                np.bincount(place, confidence, BINS) / counts,
                np.bincount(place, is_right.astype(np.float64), BINS) / counts,
            )

    def names(self, group: NDArray[Any] | None, group_labels: Any) -> Mapping[int, Any]:
        """The name of each class number, where the groups of the samples tell them; see `class_names_of`."""
        return class_names_of(self.given, group, group_labels)

    def confusion(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """int64[P] three times: each label, another class predicted at the last visits, and for how many samples."""
        wrong = (self.given >= 0) & (self.predicted != self.given)
        pairs, counts = np.unique(self.given[wrong] * 2**16 + self.predicted[wrong], return_counts=True)
        return pairs >> 16, pairs & 0xFFFF, counts

    def classes(self, suspects: NDArray[np.int64], names: Mapping[int, Any]) -> list[ClassQuality]:
        """The quality of each label that any sample has, in order of their numbers.

        Args:
            suspects: int64[K], the samples that look mislabelled.
            names: The names of class numbers, as far as there are any.
        """
        given, rivals = self.given, dict[int, tuple[int, int]]()
        for label, other, count in zip(*(part.tolist() for part in self.confusion()), strict=True):
            rivals[label] = max(rivals.get(label, (0, -1)), (count, other))
        flagged = np.bincount(given[suspects][given[suspects] >= 0], minlength=int(given.max(initial=0)) + 1)
        order = np.argsort(given, kind="stable")
        numbers, starts = np.unique(given[order], return_index=True)
        found = []
        for number, members in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number < 0:
                continue
            rival = rivals.get(number, (0, -1))[1]
            found.append(
                ClassQuality(
                    label=names.get(number, number),
                    size=len(members),
                    accuracy=float((self.predicted[members] == number).mean()),
                    margin=float(self.margin[members].mean()),
                    learned=float(np.sort(self.learned[members])[(len(members) - 1) // 2]),
                    forgotten=float(self.forgotten[members].mean()),
                    num_suspects=int(flagged[number]),
                    rival=names.get(rival, rival) if rival >= 0 else None,
                )
            )
        return found


def _confidence(last: Floats, evidence: Mapping[str, NDArray[Any]], known: NDArray[np.bool_]) -> Floats:
    """float32[N], the probability of the class predicted last; NaN unless the losses are cross entropies.

    The cross entropy of a label that the strongest of C - 1 others beats by m is at least log(1 + exp(m)), and at most
    log(1 + (C - 1) exp(m)), which shows other losses. Where it is c, the predicted class has exp(max(m, 0) - c).
    """
    margin = np.clip(np.nan_to_num(evidence["last_margin"]).astype(np.float64), -FARTHEST, FARTHEST)
    others = max(1, int(max(evidence[name].max(initial=0) for name in ("given", "predicted", "leader"))))
    room = CLOSE + 0.001 * np.abs(margin)
    is_entropy = last >= np.logaddexp(0, margin) - room
    is_entropy &= last <= np.logaddexp(0, margin + math.log(others)) + room
    if np.count_nonzero(known & ~is_entropy) > MOST_OTHER * np.count_nonzero(known):
        return np.full(len(last), np.float32("nan"))
    return np.where(is_entropy, np.exp(np.minimum(np.maximum(margin, 0) - last, 0)), np.nan).astype(np.float32)
