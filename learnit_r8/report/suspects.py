"""The table of suspects: all of them, with label, suggestion and odds, to mark on paper and to take along as CSV."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Sequence

from ..dashboard.export import write_csv
from ..dashboard.render.svg import sparkline
from ..dashboard.text import number, share
from .charts import text
from .data import Row
from .style import wide_table

MOST_CURVES = 100
"""Rows with the curve of their losses."""

HEAD = ("mark", "#", "sample", "label", "should be", "odds", "mean loss", "uses", "epochs", "why")
COLUMNS = ("index", "name", "label", "should_be", "score", "mean_loss", "uses", "votes", "why")


def suspect_table(rows: Sequence[Row], total: int) -> tuple[str, str]:
    """The table, and a sentence on what it shows."""
    shown = f"All {total:,}" if len(rows) == total else f"The first {len(rows):,} of {total:,}"
    export = f'<a download="suspects.csv" href="data:text/csv;base64,{_csv(rows)}">Save them as CSV</a>'
    note = (
        f"{shown} samples that look mislabelled, most suspect first. Odds: the probability that the label is wrong, by "
        f"this model. {export}; or run learnit-r8 samples --suspects."
    )
    return wide_table("suspects", HEAD, itertools.starmap(_row, enumerate(rows)), is_tall=True), note


def _row(place: int, row: Row) -> str:
    curve = sparkline(row.history) if place < MOST_CURVES else ""
    odds = share(row.score, 0) if math.isfinite(row.score) else ""
    cells = (
        f'<input type="checkbox" aria-label="mark sample {row.number}">',
        str(row.number),
        text(row.name, 100),
        text(row.given, 40),
        text(row.suggested, 40),
        odds,
        number(row.mean, 4),
        f"{row.uses:,}",
        curve,
        text(row.why),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO(newline="")
    cells = (
        (row.number, row.name, row.given, row.suggested, _score(row), row.mean, row.uses, row.votes, row.why)
        for row in rows
    )
    write_csv(out, COLUMNS, cells)
    return base64.b64encode(out.getvalue().encode()).decode()


def _score(row: Row) -> float | str:
    """The score as a cell; "" where it is not known."""
    return "" if math.isnan(row.score) else round(row.score, 4)
