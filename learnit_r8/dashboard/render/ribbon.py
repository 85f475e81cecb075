"""The ribbon: the bounds of the quartiles over time."""

from __future__ import annotations

import numpy as np

from ..curve import Columns
from ..looking import Looking
from ..text import Line, Span
from ..theme import Theme
from ..view import View
from .chart import LABEL, axis, dots, plot, scale_of
from .curves import window
from .parts import rule

STYLES = ("q1", "q2", "q3", "q4")


def ribbon_panel(view: View, looking: Looking, width: int, height: int, theme: Theme) -> list[Line]:
    """Lines between the quartiles over the steps: a tail that stays while the median falls is noise, or too hard."""
    glyphs = theme.glyphs
    first, last = window(view, looking)
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
    scale = scale_of(whole, is_log=looking.log_scale)
    rows = max(1, height - 2)
    lines = [title, *plot(list(zip(curves, STYLES, strict=False)), rows, glyphs, scale)]
    lines.append(axis(cells, first, last, glyphs, [], (f"{first:,}", f"{last:,}")))
    return lines[:height]
