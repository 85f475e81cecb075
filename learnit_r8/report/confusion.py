"""Which labels are confused with which: counts of the suspects by the label given, and the one suggested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_CLASSES = 12


class Confusion(NamedTuple):
    """How many suspects with each label should have each other one.

    Attributes:
        labels: K labels; the last stands for "others" where there are more than 12.
        counts: int64[K, K], suspects by the label given, and the one suggested.
    """

    labels: list[str]
    counts: NDArray[np.int64]


def confusion_of(given: Iterable[str], suggested: Iterable[str]) -> Confusion | None:
    """Count pairs of different labels; None if no such pair is known.

    Args:
        given, suggested: K texts each, "" where unknown.
    """
    pairs = [(one, other) for one, other in zip(given, suggested, strict=True) if one and other and one != other]
    if not pairs:
        return None
    texts = np.array(pairs)
    names, counts = np.unique(texts, return_counts=True)
    kept = sorted(names[np.argsort(-counts, kind="stable")][:MOST_CLASSES].tolist(), key=_in_order)
    labels = kept + (["others"] if len(names) > len(kept) else [])
    places = {name: place for place, name in enumerate(kept)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for one, other in pairs:
        matrix[places.get(one, len(kept)), places.get(other, len(kept))] += 1
    return Confusion(labels, matrix)


def _in_order(label: str) -> tuple[bool, int, str]:
    return (False, int(label), "") if label.isdecimal() else (True, 0, label)
