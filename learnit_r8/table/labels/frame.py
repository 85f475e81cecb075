"""The frame: what is known of every sample, as pandas or polars columns with cleanlab's names."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..names import class_names_of, labels_of
from .margins import margins_of
from .overview import Overview
from .suspects import Suspects

LIBRARIES = ("pandas", "polars")

Column = NDArray[Any] | Sequence[Any]

MAP_COLUMNS = Overview._fields[:5]


def label_columns(
    known: Mapping[str, Any], verdict: Suspects, evidence: Any, *, names: Column, group_labels: Sequence[Any] | None
) -> dict[str, Column]:
    """The columns of a frame, one entry for each of N samples.

    Args:
        known: loss, last, mean float32[N], usage_count uint16[N] and group int[N] or None; NaN where a sample was never
            seen.
        verdict: The samples that look mislabelled, by their positions.
        evidence: EVIDENCE[N], or its fields by name; None without predictions.
        names: N names.
        group_labels: The label of each code of a group; None without groups.

    Returns:
        cleanlab's columns: is_label_issue; label_score in [0, 1], 0 = bad, NaN where unknown; given_label and
        predicted_label. Then sample, loss, last, mean, uses, and of the suspects score and why; and of `Overview`
        margin, variability, confidence, learned and forgotten, NaN without predictions.
    """
    size = len(known["mean"])
    given, predicted = labels_in(evidence, known["group"], group_labels, np.arange(size), verdict)
    is_issue, score, why = np.zeros(size, bool), np.full(size, np.nan), [""] * size
    is_issue[verdict.indices], score[verdict.indices] = True, verdict.score
    for index, reason in zip(verdict.indices.tolist(), verdict.why, strict=True):
        why[index] = reason
    overview = Overview.of(known["last"], evidence)
    return {
        "is_label_issue": is_issue,
        "label_score": label_scores(known["mean"], evidence),
        "given_label": given,
        "predicted_label": predicted,
        "sample": names,
        "loss": known["loss"],
        "last": known["last"],
        "mean": known["mean"],
        "uses": known["usage_count"],
        "score": score,
        "why": why,
        **{name: getattr(overview, name) for name in MAP_COLUMNS},
    }


def label_scores(mean: NDArray[np.float32], evidence: Any) -> NDArray[np.float64]:
    """float64[N] in [0, 1], 0 = bad, NaN for unseen samples.

    With predictions, the probability that the network gives the label, of two: the label and its strongest rival, by
    the mean margin. Without, exp(-mean loss), for cross entropies the geometric mean of the label's probabilities.
    """
    scores = np.exp(-np.maximum(mean.astype(np.float64), 0))
    if evidence is None:
        return scores
    margin = evidence["margin"] if "margin" in evidence else margins_of(evidence).of(evidence)
    margin = np.where(evidence["visits"] > 0, margin, -np.inf).astype(np.float64).reshape(len(scores), -1).max(axis=1)
    return np.where(margin > -np.inf, 1 / (1 + np.exp(np.clip(margin, -700, 700))), scores)


def labels_in(
    evidence: Any, group: NDArray[Any] | None, group_labels: Sequence[Any] | None, chosen: NDArray[np.int64],
    verdict: Suspects,
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """The labels that some samples were trained on, and those that were predicted; None where unknown.

    Args:
        evidence: EVIDENCE[N] or EVIDENCE[N P] by field name; None without predictions.
        group: int[N], the code of the group of each sample; None without groups.
        group_labels: The label of each code: names of the classes, where nearly all of a class are of one group.
        chosen: int64[K], positions of samples.
        verdict: Of several labels a sample those that it lists first are shown, as "5 at 3" for label 5 at place 3;
            of other samples the most suspect ones.
    """
    unknown: list[Any] = [None] * len(chosen)
    if evidence is None:
        if group is None or group_labels is None or not len(group_labels):
            return unknown, unknown
        return labels_of(group[chosen].astype(np.int64), group_labels), unknown
    if "residual" in evidence:
        known = evidence["visits"][chosen] > 0
        given, expected = evidence["given"][chosen], evidence["given"][chosen] - evidence["residual"][chosen]
        return _numbers(given, known), _numbers(expected, known)
    if (places := verdict.places) is not None:
        # The label at one place of each sample: the first that is listed, else the most suspect one.
        width = len(evidence["margin"]) // places.num_samples
        flat = chosen[:, None] * width + np.arange(width)
        margin = np.where(evidence["visits"][flat] > 0, evidence["margin"][flat], -np.inf)
        at = margin.argmax(axis=1)
        listed, first = np.unique(places.indices, return_index=True)
        if len(listed):
            found = np.searchsorted(listed, chosen).clip(0, len(listed) - 1)
            at = np.where(listed[found] == chosen, places.places[first[found]], at)
        flat_at = chosen * width + at
        seen, label = evidence["visits"][flat_at] > 0, evidence["given"][flat_at]
        texts = [f"{one} at {place}" if there else None for one, place, there in zip(label, at, seen, strict=True)]
        other = zip(texts, label.tolist(), _predicted(evidence, flat_at).tolist(), strict=True)
        return texts, [text if text is None or one == better else str(better) for text, one, better in other]
    given = np.where(evidence["visits"] > 0, evidence["given"].astype(np.int64), -1)
    names = class_names_of(given, group, group_labels)
    predicted = _predicted(evidence, chosen)
    return labels_of(given[chosen], names), labels_of(predicted, names)


def _predicted(evidence: Any, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[K], the class predicted for some labels; -1 where unknown."""
    has_rival = (evidence["margin"][chosen] > 0) & (evidence["lead"][chosen] > 0)
    given = np.where(evidence["visits"][chosen] > 0, evidence["given"][chosen].astype(np.int64), -1)
    return np.where(has_rival, evidence["leader"][chosen].astype(np.int64), given)


def _numbers(values: NDArray[np.float32], known: NDArray[np.bool_]) -> list[Any]:
    """Numbers with as many digits as tell something; None where unknown."""
    return [float(f"{value:.6g}") if there else None for value, there in zip(values, known, strict=True)]


def make_frame(columns: Mapping[str, Column], library: str | None = None) -> Any:
    """A data frame of columns.

    Args:
        columns: Arrays, or lists in which None is missing.
        library: "pandas" or "polars"; by default the one that is imported already, else the one that is installed.

    Raises:
        ValueError: the library is another.
        ImportError: it is not installed, or neither is.
    """
    if library is not None and library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {library!r}.")
    wanted = LIBRARIES if library is None else (library,)
    there = [name for name in wanted if importlib.util.find_spec(name) is not None]
    if not there:
        raise ImportError(f"to_frame() needs {' or '.join(wanted)}, which is not installed: pip install {wanted[0]}.")
    chosen = next((name for name in there if name in sys.modules), there[0])
    frames: Any = importlib.import_module(chosen)
    if chosen == "polars":
        return frames.DataFrame({name: frames.Series(name, values) for name, values in columns.items()})
    # A list of whole numbers with gaps would become floats.
    wide = {name: frames.array(values) if isinstance(values, list) else values for name, values in columns.items()}
    return frames.DataFrame(wide)
