"""The table of the contract: its columns, the cells that cannot be, and those that are red today, with their harm."""

from __future__ import annotations

from typing import NamedTuple

import pytest


class Place(NamedTuple):
    """Where a column is.

    Attributes:
        module: Of its driver, beside this one.
        framework: What it imports, to group tests by.
        own: Whether its batches and rates are its own.
        page: What a reader calls it.
    """

    module: str
    framework: str
    own: bool
    page: str


COLUMNS = {
    "numpy": Place("columns_numpy", "numpy", False, "your loop, R8's batches"),
    "numpy own": Place("columns_numpy", "numpy", True, "your loop, your batches"),
    "attach": Place("columns_torch", "torch", False, "`attach`, R8's batches"),
    "attach loader": Place("columns_torch", "torch", True, "`attach`, a DataLoader"),
    "attach stream": Place("columns_torch", "torch", True, "`attach`, a stream"),
}
OWN = [name for name, place in COLUMNS.items() if place.own]
DRAWN = [name for name, place in COLUMNS.items() if not place.own]

CANNOT: dict[tuple[str, str], str] = {}
"""By rule and column: why the cell cannot be. The page of limits shows them."""

RED: dict[tuple[str, str], str] = {}
"""By rule and column: the harm that is there today. Who mends it takes the line out."""


def _is_red(rule, columns, harm):
    RED.update({(rule, column): harm for column in columns})


_is_red("hidden_nan", COLUMNS, "user code after an epoch sees NaN weights, as nobody looks at them before it")
_is_red("healthy_quiet", DRAWN, "at a constant rate losses that stay level are called wild: 8 probes in 16 steps")
_is_red("recurring_sample", OWN, "each visit of a sample of 1e4 lowers the rate, for good")


def rule(columns=tuple(COLUMNS), program=()):
    """Let a test of a rule run in each of these columns; in some of them only with ``-m program``."""

    def decorate(test):
        row = test.__name__.removeprefix("test_")
        params = []
        for name in columns:
            marks = [pytest.mark.program] if name in program else []
            if (row, name) in CANNOT:
                marks.append(pytest.mark.skip(reason=CANNOT[row, name]))
            if (row, name) in RED:
                marks.append(pytest.mark.xfail(strict=True, reason=RED[row, name]))
            params.append(pytest.param(name, id=name, marks=marks))
        return pytest.mark.parametrize("column", params, indirect=True)(test)

    return decorate


HEADING = "## What a framework cannot keep"
"""Of the section of the page of limits that holds the table."""


def table():
    """The rows of the page of limits, in Markdown: rule, way of training, why."""
    lines = ["| rule | way of training | why not |", "|---|---|---|"]
    for (row, column), why in sorted(CANNOT.items()):
        lines.append(f"| {row.replace('_', ' ')} | {COLUMNS[column].page} | {why} |")
    return "\n".join(lines)
