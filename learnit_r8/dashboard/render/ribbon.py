"""The ribbon: the bounds of the quartiles over time."""

from __future__ import annotations

import numpy as np

from ..state.curve import Columns
from ..state.ui_state import UiState
from ..state.view import View
from ..text import Line, Span
from ..theme import Theme
from .chart import LABEL, axis, dots, plot, scale_of
from .curves import window
from .parts import rule
from .quartiles import STYLES


def ribbon_panel(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """Bounds of the quartiles over the steps. An upper bound that stays while the others fall is noise, or too hard."""
    glyphs = theme.glyphs
    first, last = window(view, ui)
    cells = max(1, width - LABEL)
    title = rule("quartile bounds of the samples' loss", width, glyphs, "Q1|Q2, Q2|Q3, Q3|Q4")
    bounds = [point for point in view.bounds if len(point.values) == 5 and first <= point.step]
    if len(bounds) < 2:
        return [title, (Span("  known after two surveys", "label"),)][:height]
    steps = np.array([point.step for point in bounds], float)
    values = np.array([point.values[1:4] for point in bounds], float).T
    places = first + (np.arange(cells * dots(glyphs)) + 0.5) / (cells * dots(glyphs)) * (last - first)
    curves = [np.interp(places, steps, row, left=np.nan, right=row[-1]) for row in values]
    whole = Columns(np.fmin.reduce(curves), np.fmin.reduce(curves), np.fmax.reduce(curves))
    scale = scale_of(whole, is_log=ui.log_scale)
    rows = max(1, height - 2)
    lines = [title, *plot(list(zip(curves, STYLES, strict=False)), rows, glyphs, scale)]
    lines.append(axis(cells, first, last, glyphs, [], (f"{first:,}", f"{last:,}")))
    return lines[:height]
