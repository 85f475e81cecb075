"""The panels and pages with charts: loss, learning rate, the user's metrics, runs over each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...events.text import number
from ..state.curve import Columns, smoothed
from ..state.ui_state import Scene, UiState
from ..state.view import Point, View
from ..text import Line, Span, beside, clip, cropped, grouped, is_held_out, joined, remark, rule, size_of
from ..theme import Theme
from .chart import LABEL, axis, dots, plot, scale_of, scale_of_all

MARKS = {"S": "S refused", "B": "B restored", "R": "R resumed", "D": "D cool-down", "C": "' checkpoint"}
"""The legend of the marks on the axis."""


def window(view: View, ui: UiState) -> tuple[int, int]:
    """First and last step of the chosen zoom."""
    last = max(1, view.step)
    if ui.zoom == "last 10%":
        return int(0.9 * last), last
    if ui.zoom != "last epoch" or view.run is None:
        return 0, last
    if per_epoch := view.run.steps_per_epoch:
        return (last - 1) // per_epoch * per_epoch, last
    return min(view.epoch_began, last - 1), last


def loss_panel(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """The loss of the batches: mean, lowest and highest of each column, with events on the axis."""
    glyphs = theme.glyphs
    cells = max(1, width - LABEL)
    first, last = window(view, ui)
    columns = view.loss.columns(cells * dots(glyphs), first, max(first + 1, last))
    if view.loss.is_empty:
        return [rule("loss of the batches", width, glyphs), remark("no loss reported yet")]
    columns = Columns(columns.low, smoothed(columns.mean), columns.high)
    late = columns
    if ui.zoom == "all" and last > len(columns.mean) // 8:
        # The range fits the last 80 % of the steps; what was higher before runs along the top.
        late = Columns(*(values[len(values) // 5 :] for values in columns))
    scale = scale_of(late, is_log=ui.log_scale)
    if late is not columns:
        early = len(columns.mean) - len(late.mean)
        columns = Columns(*(np.where(np.arange(len(v)) < early, np.minimum(v, scale.top), v) for v in columns))
    # Later marks cover earlier ones: the most important come last.
    entries = sorted(view.marks, key=lambda entry: ("CRBS".find(entry.mark), entry.step))
    marks = [(entry.step, entry.mark) for entry in entries if entry.mark != "S"]
    marks += [(incident.step, "S") for incident in view.incidents]
    shown = {mark for step, mark in marks if first <= step <= last}
    legend = [said.replace("'", glyphs.tick) for mark, said in MARKS.items() if mark in shown]
    how = ["log"] * scale.is_log + [ui.zoom] * (ui.zoom != "all")
    plain, said = ", ".join(how) or "linear, all", ", ".join([*how, *legend])
    heads = [("loss of the batches", said), ("loss", said)] if legend else []
    heads += [("loss of the batches", plain)]
    head = next((each for each in heads if sum(map(len, each)) + 8 <= width), ("loss", plain))
    title = rule(head[0], width, glyphs, head[1])
    lines = [title, *plot([(columns.mean, "loss")], max(1, height - 2), glyphs, scale, haze=columns)]
    return [*lines, axis(cells, first, last, glyphs, marks, (f"{first:,}", f"{last:,}"))][:height]


def rate_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """The learning rate: the rates so far, then the plan, with a mark at the present."""
    glyphs = theme.glyphs
    cells = max(1, width - LABEL)
    num = cells * dots(glyphs)
    done = num if not view.lr_plan else min(num, round(view.progress * num))
    rates, planned = np.full((2, num), np.nan)
    if done and not view.lr.is_empty:
        rates[:done] = view.lr.columns(done, 0, max(1, view.step)).mean
    if view.lr_plan:
        places = (np.arange(done, num) + 0.5) / num
        planned[done:] = np.interp(places, np.linspace(0, 1, len(view.lr_plan)), view.lr_plan)
    title = rule("learning rate", width, glyphs, "done, plan" if view.lr_plan else "")
    if np.isnan([rates, planned]).all():
        return [title, remark("no rate used yet")]
    curves = [(rates, "lr"), (planned, "plan")]
    drawn = plot(curves, max(1, height - 2), glyphs, scale_of_all([rates, planned]))
    place, ends = min(cells - 1, done // dots(glyphs)), ("0%", "100%") if view.lr_plan else ("", "")
    return [title, *drawn, axis(cells, 0, cells, glyphs, [(place, glyphs.dot)], ends)][:height]


def metric_panel(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """The metric that is monitored, or else one of data that is not trained on, over the steps, with its best."""
    name = view.metric
    newest, best = number(view.metrics[name][-1].value, 4), view.bests.get(name)
    note = f"{newest}, best {number(best.value, 4)} @{best.step:,}" if best is not None else newest
    room = width - len(name) - 8
    title = rule(name, width, theme.glyphs, note if len(note) <= room else newest)
    return [title, *_chart(view, ui, [name], width, height, theme)[1:]]


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
        blocks = [(_chart(view, ui, groups[name], size, each, theme), size) for name in chosen]
        lines += beside(blocks, each, theme.glyphs)
    return lines[:height]


def _groups(view: View, ui: UiState) -> dict[str, list[str]]:
    """The metrics by their stem; those of the loss with the loss of the batches, where no other of the training is."""
    groups = grouped(view.metrics)
    if "loss" in groups and all(map(is_held_out, groups["loss"])):
        groups["loss"] = [BATCH_LOSS, *groups["loss"]]
    wanted = ui.filter.lower()
    return {stem: names for stem, names in groups.items() if wanted in " ".join([stem, *names]).lower()}


METRIC_STYLES = ("loss", "metric", "lr", "q4")


def _chart(view: View, ui: UiState, names: list[str], width: int, height: int, theme: Theme) -> list[Line]:
    """Title, curves and axis of a group; its legend is in the title."""
    glyphs = theme.glyphs
    styled = list(zip(names, METRIC_STYLES, strict=False))
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
        parts = [metric_label(view, name, style, theme, details) for name, style in styled]
        line = joined(parts, width)
        if size_of(line) == sum(map(size_of, parts)) + 2 * (len(parts) - 1):
            return line
    return line


def metric_label(view: View, name: str, style: str, theme: Theme, details: int = 2) -> Line:
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
    steps, values = np.array(points, float).T
    places = first + (np.arange(num) + 0.5) / num * max(1, last - first)
    curve: NDArray[np.float64] = np.interp(places, steps, values, left=np.nan, right=np.nan)
    if np.isnan(curve).all() and first <= steps[-1] <= last:
        curve[min(num - 1, int((steps[-1] - first) / max(1, last - first) * num))] = values[-1]
    return curve
