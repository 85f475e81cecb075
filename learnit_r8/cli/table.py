"""A table as lines of text in aligned columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ..dashboard.text import clip, fit, width_of

WIDEST = 60
"""Cells of the widest column; longer texts are clipped."""


def table_lines(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), widest: int = WIDEST) -> Iterator[str]:
    """Rows of cleaned texts, equally many each, as lines.

    Args:
        rows: The texts.
        right: Places of the columns that end at the same place, such as numbers; the others begin at the same place.
        widest: Most cells of a column.

    >>> list(table_lines([("name", "loss"), ("cat.png", "0.5")], right=[1]))
    ['name     loss', 'cat.png   0.5']
    """
    widths = [min(widest, max(map(width_of, column))) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            " " * (width - width_of(text)) + clip(text, width) if place in right else fit(text, width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
