"""Exports: the numbers of a page as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..checkpoint.durable_io import make_first_free, numbered, open_output
from .render.pages import PAGES
from .state.ui_state import Scene, UiState
from .state.view import View


def export_csv(view: View, ui: UiState, scene: Scene, folder: str | os.PathLike[str]) -> str:
    """Write the numbers of the page on the screen to a new file in a folder; returns its path.

    On the page of samples, those that are marked, if there are any.

    Raises:
        OSError: the file cannot be written.
    """
    # The modules of the pages are loaded when they are needed, here as on the screen.
    from .render.samples import marked_rows

    of_marked = ui.view == "samples" and bool(ui.marked)
    stem = Path(folder) / f"{'marked' if of_marked else ui.view}-{view.step}"

    def write(path: Path) -> None:
        with open(open_output(path, "x"), "w", newline="", encoding="utf-8") as file:
            write_csv(file, *(marked_rows(view, ui.marked) if of_marked else PAGES[ui.view].rows(view, scene)))

    return str(make_first_free(numbered(stem, ".csv"), write))


def write_csv(stream: TextIO, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows, so that a spreadsheet takes no text for a formula; a value of None stays empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.13g}"
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return "'" + value if is_formula else value
