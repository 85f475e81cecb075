"""Exports: the numbers of a page as CSV, the picture on the screen as SVG."""

from __future__ import annotations

import csv
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..checkpoint.durable_io import make_first_free, numbered, open_output
from .render.pages import PAGES
from .state.ui_state import Scene, UiState
from .state.view import View
from .text import Line, width_of
from .theme import Style, Theme

CELL_WIDTH, CELL_HEIGHT = 8.4, 18
PAPER, INK, FAINT = "#16181d", "#d8dee9", "#7b8394"

_EIGHT = ("#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9")
_LEVELS = (0, 95, 135, 175, 215, 255)


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


def export_svg(lines: Sequence[Line], theme: Theme, step: int, folder: str | os.PathLike[str]) -> str:
    """Write a picture of the screen to a new file; returns its path.

    Raises:
        OSError: the file cannot be written.
    """

    def write(path: Path) -> None:
        with open(open_output(path, "x"), "w", encoding="utf-8") as file:
            file.write(as_svg(lines, theme))

    return str(make_first_free(numbered(Path(folder) / f"screen-{step}", ".svg"), write))


def as_svg(lines: Sequence[Line], theme: Theme) -> str:
    """Lines of styled text as an SVG image that loads no font, style sheet or script."""
    width = max((sum(width_of(text) for text, _ in line) for line in lines), default=0)
    size = f'width="{width * CELL_WIDTH + 16:.0f}" height="{len(lines) * CELL_HEIGHT + 16}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="ui-monospace, Menlo, Consolas, '
        f'\'DejaVu Sans Mono\', monospace" font-size="14" fill="{INK}">',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]
    for row, line in enumerate(lines):
        column = 0
        for text, style in line:
            if text.strip() or theme.styles.get(style, Style()).reverse:
                parts.append(_span(text, theme.styles.get(style, Style()), row, column))
            column += width_of(text)
    return "\n".join([*parts, "</svg>\n"])


def _span(text: str, style: Style, row: int, column: int) -> str:
    left, top, wide = 8 + column * CELL_WIDTH, 8 + row * CELL_HEIGHT, width_of(text) * CELL_WIDTH
    ink = colour_of(style)
    paper = ""
    if style.reverse:
        paper = f'<rect x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{CELL_HEIGHT}" fill="{ink}"/>'
        ink = PAPER
    weight = ' font-weight="bold"' if style.bold else ""
    return (
        f'{paper}<text x="{left:.1f}" y="{top + 13}" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs" '
        f'xml:space="preserve" fill="{ink}"{weight}>{html.escape(text)}</text>'
    )


def colour_of(style: Style) -> str:
    """The colour of a style's text on dark paper, as "#rrggbb"."""
    return _colour(style) or (FAINT if style.dim else INK)


def _colour(style: Style) -> str:
    number = style.colour
    if number is None:
        return "" if style.colour8 is None else _EIGHT[style.colour8]
    if number < 16:
        return _EIGHT[number % 8]
    if number >= 232:
        return "#" + f"{8 + 10 * (number - 232):02x}" * 3
    number -= 16
    return "#" + "".join(f"{_LEVELS[part]:02x}" for part in (number // 36, number // 6 % 6, number % 6))
