"""The page of two runs over each other: their losses, their figures, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..state.comparison import figures_of, settings_of
from ..state.curve import Columns
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clean, clip, figure, fit
from ..theme import Theme
from .chart import LABEL, axis, dots, plot, scale_of
from .header import Rows, titled
from .metrics import curve_of
from .parts import cropped, joined, remark, rule

STYLES = ("loss", "lr")
MANY = ("loss", "lr", "metric", "q4", "q3", "label")
"""Styles of the curves of several runs, over and over."""
NAME = 24


def compare_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Both losses in one chart, then the figures and the settings; up and down scroll them."""
    other = scene.other
    if other is None:
        return [rule("comparison", width, theme.glyphs), remark("learnit-r8 watch A B shows two runs here")]
    views = (view, other)
    rows = max(3, min(16, height // 2 - 2))
    lines = [*_chart(views, ui, width, rows, theme)]
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
    cells = max(1, width - LABEL)
    num, last = cells * dots(theme.glyphs), max(1, *(view.step for view in views))
    kinds = [MANY[place % len(MANY)] for place in range(len(views))]
    curves = [
        (curve_of(view, metric, num, 0, last) if metric else view.loss.columns(num, 0, last).mean, kind)
        for view, kind in zip(views, kinds, strict=True)
    ]
    title = rule(metric or "loss of the batches, over the steps", width, theme.glyphs)
    called = [(Span(clip(name, 30, theme.glyphs.ellipsis), kind),) for name, kind in zip(names, kinds, strict=True)]
    legend = joined(called, width)
    stacked = np.array([curve for curve, _ in curves])
    if np.isnan(stacked).all():
        return [title, legend, remark("nothing reported yet")]
    low, high = np.fmin.reduce(stacked), np.fmax.reduce(stacked)
    rows = plot(curves, max(1, height - 3), theme.glyphs, scale_of(Columns(low, low, high)))
    return [title, legend, *rows, axis(cells, 0, last, theme.glyphs, [], ("0", f"{last:,}"))]


def _name(view: View) -> str:
    return clean(view.run.name, 60) if view.run is not None and view.run.name else "run"


def _chart(views: tuple[View, ...], ui: UiState, width: int, rows: int, theme: Theme) -> list[Line]:
    glyphs = theme.glyphs
    cells = max(1, width - LABEL)
    last = max(1, *(view.step for view in views))
    curves = [
        (view.loss.columns(cells * dots(glyphs), 0, last).mean, style)
        for view, style in zip(views, STYLES, strict=True)
    ]
    how = "log" if ui.log_scale else "linear"
    title = rule("loss of the batches, over the steps", width, glyphs, how)
    stacked = np.array([curve for curve, _ in curves])
    if np.isnan(stacked).all():
        return [title, remark("no loss reported yet")]
    scale = scale_of(
        Columns(np.fmin.reduce(stacked), np.fmin.reduce(stacked), np.fmax.reduce(stacked)), is_log=ui.log_scale
    )
    return [title, *plot(curves, rows, glyphs, scale), axis(cells, 0, last, glyphs, [], ("0", f"{last:,}"))]


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
