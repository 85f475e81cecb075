"""The panels with charts: loss, learning rate, the user's metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...events import StepsDone
from ..state.curve import Columns
from ..state.ui_state import UiState
from ..state.view import Point, View
from ..text import Line, Span, fit, number
from ..theme import Glyphs, Theme
from .chart import LABEL, axis, chart, dots, plot, scale_of
from .parts import cropped, extremes, remark, rule

LEAST = 3
"""Rows of the smallest chart: its title, the curve, its axis."""


def window(view: View, ui: UiState) -> tuple[int, int]:
    """First and last step of the chosen zoom."""
    last = max(1, view.step)
    if ui.zoom == "last 10%":
        return int(0.9 * last), last
    if ui.zoom == "last epoch" and view.run is not None and not view.run.steps_per_epoch:
        return min(view.epochs[-1].step if view.epochs else 0, last - 1), last
    if ui.zoom == "last epoch" and view.run is not None:
        per_epoch = max(1, view.run.steps_per_epoch)
        return max(0, (last - 1) // per_epoch * per_epoch), last
    return 0, last


def loss_columns(view: View, num: int, first: int, last: int) -> Columns:
    """The loss between two steps, from the newest records where they are finer than the curve."""
    curve, recent = view.loss, view.recent
    is_coarse = (last - first) < num * curve.width
    if is_coarse and curve.width > 1 and recent and recent[0].step - recent[0].num_steps <= first:
        return _columns_of(recent, num, first, last)
    return curve.columns(num, first, max(first + 1, last))


def _columns_of(records: Sequence[StepsDone], num: int, first: int, last: int) -> Columns:
    """Records as columns: a column has the records that end in it, else the one that covers it."""
    values = np.array([(record.step, record.lowest, record.loss, record.highest) for record in records], float).T
    steps, low, mean, high = values
    edges = first + (last - first) * np.arange(num) / num
    starts = np.minimum(np.searchsorted(steps, edges, side="right"), len(steps) - 1)
    # The mean over the records of each column.
    sums, counts = np.add.reduceat(mean, starts), np.diff(np.append(starts, len(steps)))
    counts[:-1] = np.maximum(counts[:-1], 1)
    return Columns(np.minimum.reduceat(low, starts), sums / np.maximum(counts, 1), np.maximum.reduceat(high, starts))


def loss_panel(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """The loss of the batches: mean, lowest and highest of each column, with events on the axis."""
    glyphs = theme.glyphs
    cells = max(1, width - LABEL)
    first, last = window(view, ui)
    columns = loss_columns(view, cells * dots(glyphs), first, last)
    scale = scale_of(columns, is_log=ui.log_scale)
    how = "log" if scale.is_log else "linear"
    title = rule("loss of the batches", width, glyphs, f"{how}, {ui.zoom}")
    if view.loss.is_empty:
        return [title, remark("no loss reported yet")]
    rows = max(1, height - 2)
    lines = [title, *chart(columns, rows, glyphs, scale)]
    if height >= LEAST:
        # Later marks cover earlier ones: the most important come last.
        entries = sorted(view.marks, key=lambda entry: ("CRBS".find(entry.mark), entry.step))
        marks = [(entry.step, entry.mark) for entry in entries]
        lines.append(axis(cells, first, last, glyphs, marks, (f"{first:,}", f"{last:,}")))
    return lines[:height]


def rate_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """The learning rate: the rates so far, then the plan, with a mark at the present."""
    glyphs = theme.glyphs
    cells = max(1, width - LABEL)
    columns, done = rate_columns(view, cells * dots(glyphs))
    title = rule("learning rate", width, glyphs, "done, plan" if view.lr_plan else "")
    if np.isnan(columns.mean).all():
        return [title, remark("no rate used yet")]
    scale = scale_of(columns)
    rows = max(1, height - 2)
    lines = [title, *chart(columns, rows, glyphs, scale, style="lr", haze="lr", plan_from=done)]
    if height >= LEAST:
        place = min(cells - 1, done // dots(glyphs))
        ends = ("0%", "100%") if view.lr_plan else ("", "")
        line = axis(cells, 0, cells, glyphs, [(place, glyphs.dot)], ends)
        lines.append(line)
    return lines[:height]


def rate_columns(view: View, num: int) -> tuple[Columns, int]:
    """The rates over the whole run, and the first column of the plan."""
    done = num if not view.lr_plan else min(num, round(view.progress * num))
    values = np.full(num, np.nan)
    if done and not view.lr.is_empty:
        values[:done] = view.lr.columns(done, 0, max(1, view.step)).mean
    if view.lr_plan and done < num:
        plan = np.asarray(view.lr_plan, np.float64)
        places = (np.arange(done, num) + 0.5) / num
        values[done:] = np.interp(places, np.linspace(0, 1, len(plan)), plan)
    return Columns(values, values, values), done


def metrics_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """The user's metrics: newest, lowest and highest value, and a chart of each where there is room."""
    glyphs = theme.glyphs
    lines = [rule("metrics", width, glyphs, "last (lowest .. highest)")]
    if not view.metrics:
        return [*lines, remark("none logged: r8.log(accuracy=...)")]
    shown = list(view.metrics.items())[: max(1, height - 1)]
    each = (height - 1) // len(shown)
    for name, points in shown:
        lines.append(_metric_line(name, points, width, glyphs))
        if each >= LEAST:
            lines += _metric_chart(points, width, each - 1, glyphs)
    return lines[:height]


def _metric_line(name: str, points: list[Point], width: int, glyphs: Glyphs) -> Line:
    ends = extremes(points)
    room = max(1, width - len(ends) - 12)
    return cropped(
        (
            Span(f" {fit(name, room, glyphs.ellipsis)}", "label"),
            Span(f"{number(points[-1].value):>9} ", "metric"),
            Span(ends, "label"),
        ),
        width,
    )


def _metric_chart(points: list[Point], width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The values over the steps they belong to."""
    num = max(1, width - LABEL) * dots(glyphs)
    known = [point for point in points if np.isfinite(point.value)]
    if not known:
        return []
    steps, values = np.array([point.step for point in known], float), np.array([point.value for point in known])
    places = np.linspace(steps.min(), max(steps.max(), steps.min() + 1), num)
    curve = np.interp(places, steps, values)
    return plot([(curve, "metric")], height, glyphs, scale_of(Columns(curve, curve, curve)))
