"""The page of the user's metrics: a grid of charts, training and validation over each other, the best marked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..state.metric_names import grouped, is_held_out
from ..state.ui_state import Scene, UiState
from ..state.view import Point, View
from ..text import Line, Span, clip, number
from ..theme import Theme
from .chart import LABEL, axis, dots, plot, scale_of_all
from .curves import window
from .header import Rows, titled
from .parts import beside, cropped, joined, remark, rule, size_of

LEAST_WIDTH, LEAST_HEIGHT = 38, 7
MOST_HEIGHT = 14
BATCH_LOSS = "loss of the batches"


def metrics_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """As many charts as fit; up and down show the others."""
    groups = _groups(view, ui)
    if not groups:
        why = "none has that name" if ui.filter else "nothing was logged: r8.log(accuracy=...)"
        return [rule("metrics", width, theme.glyphs), remark(why)]
    across = max(1, min(width // LEAST_WIDTH, math.ceil(math.sqrt(len(groups)))))
    down = -(-len(groups) // across)
    shown = max(1, min(down, (height - 1) // LEAST_HEIGHT))
    first = min(ui.scroll, down - shown)
    more = f", {first * across + 1} to {min(len(groups), (first + shown) * across)}: up, down" if shown < down else ""
    lines = [rule("metrics", width, theme.glyphs, f"{len(groups)}{more}")]
    each = min(MOST_HEIGHT, (height - 1) // shown)
    names = list(groups)
    size = (width - across + 1) // across
    for row in range(first, first + shown):
        chosen = names[row * across : (row + 1) * across]
        blocks = [(_chart(view, ui, name, groups[name], size, each, theme), size) for name in chosen]
        lines += beside(blocks, each, theme.glyphs)
    return lines[:height]


def _groups(view: View, ui: UiState) -> dict[str, list[str]]:
    """The metrics by their stem; those of the loss with the loss of the batches, where no other of the training is."""
    groups = grouped(view.metrics)
    if "loss" in groups and all(map(is_held_out, groups["loss"])):
        groups["loss"] = [BATCH_LOSS, *groups["loss"]]
    wanted = ui.filter.lower()
    return {stem: names for stem, names in groups.items() if wanted in " ".join([stem, *names]).lower()}


STYLES = ("loss", "metric", "lr", "q4")


def _chart(view: View, ui: UiState, stem: str, names: list[str], width: int, height: int, theme: Theme) -> list[Line]:
    """Title, curves and axis of a group; its legend is in the title."""
    glyphs = theme.glyphs
    styled = list(zip(names, STYLES, strict=False))
    first, last = window(view, ui)
    cells = max(1, width - LABEL - 1)
    curves = [(curve_of(view, name, cells * dots(glyphs), first, last), style) for name, style in styled]
    values = [curve for curve, _ in curves]
    legend = _legend(view, styled, width - 1, theme)
    title = (Span(" "), *legend)
    if np.isnan(values).all():
        return [cropped(title, width), remark("no value in this zoom")]
    rows = max(1, height - 2)
    scale = scale_of_all(values, is_log=ui.log_scale)
    marks = [(view.bests[name].step, glyphs.dot) for name, _ in styled if name in view.bests]
    ends = (f"{first:,}", f"{last:,}")
    return [cropped(title, width), *plot(curves, rows, glyphs, scale), axis(cells, first, last, glyphs, marks, ends)]


def _legend(view: View, styled: Sequence[tuple[str, str]], width: int, theme: Theme) -> Line:
    """All names of a chart, with as much beside them as there is room for: newest and best value, the newest, none."""
    line: Line = ()
    for details in (2, 1, 0):
        parts = [_label(view, name, style, theme, details) for name, style in styled]
        line = joined(parts, width)
        if size_of(line) == sum(map(size_of, parts)) + 2 * (len(parts) - 1):
            return line
    return line


def _label(view: View, name: str, style: str, theme: Theme, details: int) -> Line:
    """Name of a metric in the style of its curve, and with more details its newest and its best value."""
    short = "batches" if name == BATCH_LOSS else clip(name, 18, theme.glyphs.ellipsis)
    if not details:
        return (Span(short, style),)
    newest = view.ema if name == BATCH_LOSS else view.metrics[name][-1].value
    best = view.bests.get(name) if details > 1 else None
    note = f" best {number(best.value, 4)} @{best.step:,}" if best is not None else ""
    return Span(short + " ", style), Span(number(newest, 4), "value"), Span(note, "label")


def curve_of(view: View, name: str, num: int, first: int, last: int) -> NDArray[np.float64]:
    """The values between two steps, joined by straight lines; NaN before the first and after the last."""
    if name == BATCH_LOSS:
        return view.loss.columns(num, first, max(first + 1, last)).mean
    points: Sequence[Point] = [point for point in view.metrics[name] if math.isfinite(point.value)]
    if not points:
        return np.full(num, np.nan)
    steps = np.array([point.step for point in points], float)
    values = np.array([point.value for point in points])
    places = first + (np.arange(num) + 0.5) / num * max(1, last - first)
    curve: NDArray[np.float64] = np.interp(places, steps, values, left=np.nan, right=np.nan)
    if np.isnan(curve).all() and first <= steps[-1] <= last:
        curve[min(num - 1, int((steps[-1] - first) / max(1, last - first) * num))] = values[-1]
    return curve


metrics_page = titled(metrics_panel)


def metrics_rows(view: View, scene: Scene) -> Rows:
    """Every value that is kept."""
    rows = ((name, point.step, point.value) for name, points in view.metrics.items() for point in points)
    return ("name", "step", "value"), rows
