"""Which labels are confused with which: counts of the suspects by the label given, and the one suggested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .charts import text
from .style import wide_table

MOST_CLASSES = 12


class Confusion(NamedTuple):
    """How many suspects with each label should have each other one.

    Attributes:
        labels: K labels; the last stands for "others" where there are more than 12.
        counts: int64[K, K], suspects by the label given, and the one suggested.
    """

    labels: list[str]
    counts: NDArray[np.int64]


def confusion_of(given: Iterable[str], suggested: Iterable[str], numbers: Sequence[int] = ()) -> Confusion | None:
    """Count pairs of different labels; None if no such pair is known.

    Args:
        given, suggested: K texts each, "" where unknown.
        numbers: How often each pair counts, K of them; by default once.
    """
    pairs, counts = Counter[tuple[str, str]](), Counter[str]()
    for one, other, number in zip(given, suggested, numbers or repeat(1), strict=False):
        if one and other and one != other:
            pairs[one, other] += number
            counts.update({one: number, other: number})
    if not pairs:
        return None
    names = sorted(counts, key=lambda name: (-counts[name], name))
    kept = sorted(names[:MOST_CLASSES], key=_in_order)
    labels = kept + (["others"] if len(names) > len(kept) else [])
    places = {name: place for place, name in enumerate(kept)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    for (one, other), number in pairs.items():
        matrix[places.get(one, len(kept)), places.get(other, len(kept))] += number
    return Confusion(labels, matrix)


def _in_order(label: str) -> tuple[bool, int, str]:
    return (False, int(label), "") if label.isdecimal() else (True, 0, label)


def confusion_table(confusion: Confusion, instead: str = "should be") -> str:
    """The counts as a table: a row for each label given, a column for each suggested; darker for more."""
    most = max(1, int(confusion.counts.max()))
    rows = (
        f"<tr><th>{text(label, 20)}</th>{''.join(_counts(row.tolist(), most))}</tr>"
        for label, row in zip(confusion.labels, confusion.counts, strict=True)
    )
    return wide_table("matrix", (f"given ↓ {instead} →", *(text(label, 20) for label in confusion.labels)), rows)


def _counts(row: list[int], most: int) -> Iterator[str]:
    for count in row:
        shade = 5 * -(-10 * count // most)
        yield f'<td class="shade{shade}">{count:,}</td>' if count else '<td class="none">·</td>'
