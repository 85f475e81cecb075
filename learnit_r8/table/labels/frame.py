"""The frame: what is known of every sample, as pandas or polars columns with cleanlab's names."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..label_noise import Suspects
from ..names import class_names_of, labels_of
from .overview import Overview

if TYPE_CHECKING:
    from ..storage import SampleStorage

LIBRARIES = ("pandas", "polars")

Column = NDArray[Any] | Sequence[Any]

MAP_COLUMNS = Overview._fields[:5]


def label_columns(
    figures: Mapping[str, Any],
    verdict: Suspects,
    *,
    given: Column,
    predicted: Column,
    names: Column,
    evidence: Any = None,
) -> dict[str, Column]:
    """The columns of a frame, one entry for each of N samples.

    Args:
        figures: loss, last, mean float32[N] and usage_count uint16[N], NaN where a sample was never seen.
        verdict: The samples that look mislabelled, by their positions.
        given: N labels that were trained on, None where unknown.
        predicted: N labels that were predicted, None where unknown.
        names: N names.
        evidence: EVIDENCE[N], or its fields by name; None without predictions.

    Returns:
        cleanlab's columns: is_label_issue; label_score in [0, 1], 0 = bad, NaN where unknown; given_label and
        predicted_label. Then sample, loss, last, mean, uses, and of the suspects score and why; and of `Overview`
        margin, variability, confidence, learned and forgotten, NaN without predictions.
    """
    size = len(figures["mean"])
    is_issue, score, why = np.zeros(size, bool), np.full(size, np.nan), [""] * size
    is_issue[verdict.indices], score[verdict.indices] = True, verdict.score
    for index, reason in zip(verdict.indices.tolist(), verdict.why, strict=True):
        why[index] = reason
    overview = Overview.of(figures["last"], evidence)
    return {
        "is_label_issue": is_issue,
        "label_score": label_scores(figures["mean"], evidence),
        "given_label": given,
        "predicted_label": predicted,
        "sample": names,
        "loss": figures["loss"],
        "last": figures["last"],
        "mean": figures["mean"],
        "uses": figures["usage_count"],
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
    rivals = 1 / (1 + np.exp(np.clip(evidence["margin"].astype(np.float64), -700, 700)))
    return np.where(evidence["visits"] > 0, rivals, scores)


def labels_in(
    evidence: Any,
    group: NDArray[Any] | None,
    group_labels: Sequence[Any] | None,
    chosen: NDArray[np.int64],
) -> tuple[list[Any], list[Any]]:
    """The labels that some samples were trained on, and those that were predicted; None where unknown.

    Args:
        evidence: EVIDENCE[N], or its fields by name; None without predictions.
        group: int[N], the code of the group of each sample; None without groups.
        group_labels: The label of each code: names of the classes, where nearly all of a class are of one group.
        chosen: int64[K], positions of samples.
    """
    unknown: list[Any] = [None] * len(chosen)
    if evidence is None:
        if group is None or group_labels is None or not len(group_labels):
            return unknown, unknown
        return labels_of(group[chosen].astype(np.int64), group_labels), unknown
    given = np.where(evidence["visits"] > 0, evidence["given"].astype(np.int64), -1)
    names = class_names_of(given, group, group_labels)
    has_rival = (evidence["margin"][chosen] > 0) & (evidence["lead"][chosen] > 0)
    predicted = np.where(has_rival, evidence["leader"][chosen].astype(np.int64), given[chosen])
    return labels_of(given[chosen], names), labels_of(predicted, names)


def columns_of(
    storage: SampleStorage, known: Mapping[str, NDArray[Any]], evidence: Any, verdict: Suspects
) -> dict[str, Column]:
    """The columns of a frame of a whole table.

    Args:
        storage: The names and groups of its samples.
        known: The fields of its samples, as `SampleStorage.read` returns them.
        evidence: EVIDENCE by field, N each; None without predictions.
        verdict: The samples that look mislabelled.
    """
    everyone, labels = np.arange(storage.num_samples), storage.group_labels
    given, predicted = labels_in(evidence, known["group"], None if labels is None else labels.tolist(), everyone)
    names = [storage.name_of(index) for index in range(storage.num_samples)]
    return label_columns(known, verdict, given=given, predicted=predicted, names=names, evidence=evidence)


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
    return _pandas(columns) if chosen == "pandas" else _polars(columns)


def _pandas(columns: Mapping[str, Column]) -> Any:
    import pandas  # type: ignore[import-untyped,unused-ignore]

    # A list of whole numbers with gaps would become floats.
    return pandas.DataFrame(
        {name: pandas.array(values) if isinstance(values, list) else values for name, values in columns.items()}
    )


def _polars(columns: Mapping[str, Column]) -> Any:
    import polars  # type: ignore[import-not-found,unused-ignore]

    return polars.DataFrame({name: polars.Series(name, values) for name, values in columns.items()})


def write_parquet(columns: Mapping[str, Column], file: IO[bytes]) -> None:
    """Write columns as a Parquet file.

    Raises:
        ValueError: nothing that can write one is installed.
        OSError: the file cannot be written.
    """
    if importlib.util.find_spec("polars") is not None:
        _polars(columns).write_parquet(file)
    elif all(importlib.util.find_spec(name) is not None for name in ("pandas", "pyarrow")):
        _pandas(columns).to_parquet(file, index=False)
    else:
        raise ValueError("a Parquet file needs polars, or pandas with pyarrow: pip install polars.")
