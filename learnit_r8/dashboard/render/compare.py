"""The page of two runs over each other: their losses, their figures, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..state.comparison import figures_of, settings_of
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clean, clip, figure, fit
from ..theme import Theme
from .chart import LABEL, axis, dots, plot, scale_of_all
from .header import Rows, titled
from .metrics import curve_of
from .parts import cropped, joined, remark, rule

STYLES = ("loss", "lr")
MANY = ("loss", "lr", "metric", "q4", "q3", "label")
"""Styles of the curves of several runs, over and over."""
NAME = 24
LOSSES = "loss of the batches, over the steps"


def compare_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Both losses in one chart, then the figures and the settings; up and down scroll them."""
    other = scene.other
    if other is None:
        return [rule("comparison", width, theme.glyphs), remark("learnit-r8 watch A B shows two runs here")]
    views = (view, other)
    rows = max(3, min(16, height // 2 - 2))
    chart = _plotted(views, STYLES, "", width, rows, theme, ui.log_scale) or [remark("no loss reported yet")]
    lines = [rule(LOSSES, width, theme.glyphs, "log" if ui.log_scale else "linear"), *chart]
    table = _table(views, width, theme)
    room = max(0, height - len(lines) - 1)
    first = min(ui.scroll, max(0, len(table) - room))
    heads = [(f"{letter} {_name(each)}", style) for letter, each, style in zip("AB", views, STYLES, strict=True)]
    size = max(8, min(30, (width - NAME - 4) // 2))
    head = (Span(" " * (NAME + 2)), *(Span(fit(text, size) + " ", style) for text, style in heads))
    return [cropped(line, width) for line in [*lines, head, *table[first : first + room]]]


def chart_of(
    views: Sequence[View], names: Sequence[str], metric: str, width: int, height: int, theme: Theme
) -> list[Line]:
    """The curves of any number of runs over each other: of a metric, or with "" of the losses of batches."""
    kinds = [MANY[place % len(MANY)] for place in range(len(views))]
    called = [(Span(clip(name, 30, theme.glyphs.ellipsis), kind),) for name, kind in zip(names, kinds, strict=True)]
    rows = _plotted(views, kinds, metric, width, max(1, height - 3), theme)
    title = rule(metric or LOSSES, width, theme.glyphs)
    return [title, joined(called, width), *(rows or [remark("nothing reported yet")])]


def _name(view: View) -> str:
    return clean(view.run.name, 60) if view.run is not None and view.run.name else "run"


def _plotted(
    views: Sequence[View], kinds: Sequence[str], metric: str, width: int, rows: int, theme: Theme, is_log: bool = False
) -> list[Line]:
    """The curves of runs over each other, each in its style, with their axis; nothing where there are no values."""
    cells, last = max(1, width - LABEL), max(1, *(view.step for view in views))
    num = cells * dots(theme.glyphs)
    curves = [
        curve_of(view, metric, num, 0, last) if metric else view.loss.columns(num, 0, last).mean for view in views
    ]
    if np.isnan(curves).all():
        return []
    drawn = plot(list(zip(curves, kinds, strict=True)), rows, theme.glyphs, scale_of_all(curves, is_log=is_log))
    return [*drawn, axis(cells, 0, last, theme.glyphs, [], ("0", f"{last:,}"))]


def _table(views: tuple[View, ...], width: int, theme: Theme) -> list[Line]:
    """The figures that a run has, the better one in bold with a star, and the settings that differ."""
    size = max(8, min(30, (width - NAME - 4) // 2))
    lines: list[Line] = []
    for row in figures_of(views):
        if not any(map(math.isfinite, row.values)):
            continue
        texts = [figure(value) for value in row.values]
        cells = [
            Span(fit(f"{text} *" if place == row.better else text, size) + " ", "value" if place == row.better else "")
            for place, text in enumerate(texts)
        ]
        lines.append((Span("  " + fit(clean(row.name, NAME), NAME), "label"), *cells))
    differing = settings_of(views)
    if differing:
        lines.append(rule("settings that differ", width, theme.glyphs, f"{len(differing)}"))
    for setting in differing:
        cells = [Span(fit(clip(clean(text, 200), size, theme.glyphs.ellipsis), size) + " ") for text in setting.values]
        lines.append((Span("  " + fit(clean(setting.name, NAME), NAME), "label"), *cells))
    return lines


compare_page = titled(compare_panel)


def compare_rows(view: View, scene: Scene) -> Rows:
    """The figures of both runs."""
    if scene.other is None:
        return ("name", "value"), ()
    return ("name", "first", "second"), ((row.name, *row.values) for row in figures_of((view, scene.other)))
