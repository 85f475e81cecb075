"""The charts of a report: functions from its data to SVG text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..dashboard.render.svg import Frame, band, circle, frame, grid, hint, label, line, range_of, rect, svg
from ..dashboard.state.view import Point, View
from ..dashboard.text import is_held_out, stem_of
from ..events.text import clean, number

if TYPE_CHECKING:
    from .data import DataMap

WIDE, HALF = 1060.0, 516.0
COLUMNS = 500
CELLS = (60, 34)
QUARTERS = ("Q1", "Q2", "Q3", "Q4")
MOST_MARKS = 40
ZONES = 120
"""Stretches of the chart of losses that say their values."""
KINDS = 4
"""Looks of curves in one chart."""


def text(value: object, most: int = 200) -> str:
    """A text of the run, safe in a page."""
    return html.escape(clean(value, most))


def _steps(view: View) -> tuple[float, float]:
    return 0.0, float(max(1, view.loss.last_step, view.step))


def held_out_losses(view: View) -> list[str]:
    """The logged losses of data that is not trained on."""
    return [name for name in view.metrics if stem_of(name) == "loss" and is_held_out(name)]


def loss_chart(view: View, *, log: bool, width: float = WIDE) -> str:
    """The losses of batches and of validation: means as lines, lowest to highest as a band, with marks for events."""
    first, last = _steps(view)
    columns = view.loss.columns(min(COLUMNS, int(last)), 0, int(last))
    x = _centres(len(columns.mean), last)
    low, _ = range_of(columns.low, log=log)
    _, high = range_of(columns.high, log=log, share=0.995)
    held_out = {name: _finite(view.metrics[name]) for name in held_out_losses(view)}
    known = [point.value for points in held_out.values() for point in points if point.value > 0 or not log]
    if known:
        low, high = min(low, *known), max(high, range_of(known, log=log, share=0.95)[1])
    low, high = (low, max(high, low * 2)) if log else _with_room(min(0.0, low), high, 0.04)
    chart = frame(width, 300, (first, last), (low, high), log=log)
    parts = [
        grid(chart, x_name="step"),
        *_zones(view, chart, held_out),
        *_marks(view, chart),
        band(chart, x, columns.low, columns.high, "range"),
        line(chart, x, columns.mean, "mean"),
    ]
    # The curves of validation losses, each with a ring at its best.
    for name, points in held_out.items():
        parts.append(line(chart, [point.step for point in points], [point.value for point in points], "metric held"))
        best = view.bests.get(name)
        if best is not None:
            title = f"best {text(name, 40)} {number(best.value)} at step {best.step:,}"
            parts.append(circle(chart.x.at(best.step), chart.y.at(best.value), 5, "best held", title))
    if view.best is not None:
        title = f"best smoothed loss {number(view.best.value)} at step {view.best.step:,}"
        parts.append(circle(chart.x.at(view.best.step), chart.y.at(view.best.value), 4, "best", title))
    return svg(chart, parts, "loss of the batches over the steps" + (", logarithmic" if log else ""))


def _finite(points: list[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]


def _zones(view: View, chart: Frame, held_out: dict[str, list[Point]]) -> Iterator[str]:
    """Invisible stretches of the chart that say the values below the pointer."""
    last = max(1, view.loss.last_step, view.step)
    num = min(ZONES, last)
    columns = view.loss.columns(num, 0, last)
    for place in range(num):
        first, end = place * last // num, (place + 1) * last // num
        parts = []
        if math.isfinite(columns.mean[place]):
            ends = f"{number(columns.low[place])} to {number(columns.high[place])}"
            parts.append(f"loss {number(columns.mean[place])} ({ends})")
        newest = {name: [point for point in points if point.step <= end][-1:] for name, points in held_out.items()}
        parts += [f"{text(name, 40)} {number(points[0].value)}" for name, points in newest.items() if points]
        if parts:
            left, right = chart.x.at(first), chart.x.at(end)
            title = f"steps {first + 1:,} to {end:,}: {', '.join(parts)}"
            yield rect(left, chart.y.end, right - left, chart.y.start - chart.y.end, "zone", title)


def _with_room(low: float, high: float, share: float) -> tuple[float, float]:
    """A range with room above it."""
    return low, high + share * (high - low)


def _centres(num: int, last: float) -> NDArray[np.float64]:
    return (np.arange(num) + 0.5) * last / num


def _marks(view: View, chart: Frame) -> Iterator[str]:
    """A vertical line for every event with a letter: refusals, restores, checkpoints."""
    entries = [entry for entry in view.log if entry.mark]
    alerts = [entry for entry in entries if entry.level == "alert"]
    room, top = -math.inf, chart.y.end
    for entry in sorted((alerts or entries)[-MOST_MARKS:], key=lambda entry: entry.step):
        at = chart.x.at(entry.step)
        title = f"step {entry.step:,}: {text(entry.text)}"
        kind = "alert" if entry.level == "alert" else "event"
        ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{chart.y.start}"'
        yield f'<line class="mark {kind}" {ends}>{hint(title)}</line>'
        if at - room > 14:
            yield label(at, top - 4, text(entry.mark), f"label {kind}", "middle", title)
            room = at


def lr_chart(view: View) -> str:
    """The learning rate so far, and its plan."""
    first, last = _steps(view)
    total = float(view.run.total_steps) if view.run is not None and view.run.total_steps else math.nan
    end = max(last, total) if math.isfinite(total) else last
    columns = view.lr.columns(min(COLUMNS, int(last)), 0, int(last))
    plan = np.array(view.lr_plan)
    _, high = range_of(np.concatenate([columns.high, plan]))
    chart = frame(HALF, 220, (first, end), (0.0, high * 1.05))
    parts = [grid(chart, x_name="step")]
    if len(plan) > 1 and math.isfinite(total):
        parts.append(line(chart, np.linspace(0, total, len(plan)), plan, "plan"))
    parts.append(line(chart, _centres(len(columns.mean), last), columns.mean, "rate"))
    return svg(chart, parts, "learning rate over the steps")


def metric_chart(view: View, title: str, names: Sequence[str], last: float) -> str:
    """Metrics that belong over each other, those of training and of validation: over the steps, the best ringed."""
    low, high = range_of([point.value for name in names for point in view.metrics[name]])
    chart = frame(HALF, 220, (0.0, max(1.0, last)), (low - 0.05 * (high - low), high + 0.05 * (high - low)))
    parts = [grid(chart, x_name="step")]
    for place, name in enumerate(names):
        kind, dot, points = f"metric m{place % KINDS}", f"dot m{place % KINDS}", _finite(view.metrics[name])
        parts.append(line(chart, [point.step for point in points], [point.value for point in points], kind))
        called = f"{text(name, 40)}, " if len(names) > 1 else ""
        parts += [
            circle(chart.x.at(step), chart.y.at(value), 2.6, dot, f"{called}step {step:,}: {number(value)}")
            for step, value in points
        ]
        best = view.bests.get(name)
        if best is not None:
            said = f"best {text(name, 40)} {number(best.value)} at step {best.step:,}"
            parts.append(circle(chart.x.at(best.step), chart.y.at(best.value), 5, "best", said))
    return svg(chart, parts, f"{text(title)} over the steps")


def ribbon_chart(bounds: NDArray[np.float64]) -> str:
    """Loss ranges of the quarters of the samples over the steps."""
    steps, values = bounds[:, 0], bounds[:, 1:]
    low, high = range_of(values[:, 0], log=True)[0], range_of(values[:, 4], log=True, share=0.98)[1]
    low = max(low, float(np.nanmax(values)) * 1e-5, 1e-12)
    ends = (float(steps[0]), float(max(steps[-1], steps[0] + 1)))
    chart = frame(HALF, 260, ends, (low, max(high, low * 2)), log=True)
    parts = [grid(chart)]
    for quarter in range(4):
        name = f"{QUARTERS[quarter]}: {number(values[-1, quarter])} to {number(values[-1, quarter + 1])} at the end"
        parts.append(band(chart, steps, values[:, quarter], values[:, quarter + 1], f"q{quarter + 1} area", name))
    parts += [line(chart, steps, values[:, middle], "between") for middle in (1, 2, 3)]
    return svg(chart, parts, "loss ranges of the quarters over the steps")


def map_chart(data_map: DataMap, marked: Sequence[tuple[int, str]]) -> str:
    """The samples by mean and variation of their margins or losses; darker cells hold more samples.

    Args:
        data_map: The samples.
        marked: Index and name of those with a circle.
    """
    mean, spread, of_what = data_map.mean, data_map.spread, "loss" if data_map.num_epochs else "margin"
    known = np.isfinite(mean) & np.isfinite(spread)
    chart = map_frame(data_map)
    x, y = chart.x, chart.y
    counts, _, _ = np.histogram2d(
        np.minimum(spread[known], x.high),
        np.clip(mean[known], y.low, y.high),
        bins=CELLS,
        range=((0, x.high), (y.low, y.high)),
    )
    parts = [grid(chart, whole_x=False), *_cells(chart, counts)]
    for index, name in marked:
        if known[index]:
            title = f"{text(name, 80)}: mean {number(float(mean[index]))}, varies by {number(float(spread[index]))}"
            parts.append(circle(x.at(spread[index]), y.at(mean[index]), 2.6, "suspect", title))
    parts += [
        label(x.start + 6, y.end + 10, f"mean {of_what}", "label faint"),
        label(x.end, y.start - 6, "how much it varies", "label faint", anchor="end"),
    ]
    return svg(chart, parts, f"samples by mean {of_what} and its variation")


def map_frame(data_map: DataMap) -> Frame:
    """The axes of the map."""
    high = range_of(data_map.mean, share=0.9995)[1]
    low = -range_of(-data_map.mean, share=0.9995)[1] if data_map.num_epochs == 0 else range_of(data_map.mean)[0]
    if data_map.num_epochs and low >= 0:
        low = 0.0
    return frame(HALF, 360, (0.0, range_of(data_map.spread, share=0.999)[1]), _with_room(low, high, 0.02))


def _cells(chart: Frame, counts: NDArray[np.float64]) -> Iterator[str]:
    x, y = chart.x, chart.y
    wide, tall = (x.end - x.start) / CELLS[0], (y.start - y.end) / CELLS[1]
    shades = np.log1p(counts) / max(1e-9, math.log1p(counts.max()))
    for column, row in zip(*np.nonzero(counts), strict=True):
        shade = f"{0.12 + 0.88 * shades[column, row]:.2f}"
        left, top = x.start + column * wide, y.start - (row + 1) * tall
        yield rect(left, top, wide + 0.2, tall + 0.2, "cell", fill_opacity=shade)


def histogram(counts: tuple[int, ...], ends: tuple[float, float], name: str, *, log: bool = False) -> str:
    """A histogram of samples."""
    log = log and 0 < ends[0] < ends[1]
    chart = frame(HALF, 150, range_of(ends, log=log), (0.0, float(max(1, *counts)) * 1.05), log_x=log)
    wide = (chart.x.end - chart.x.start) / len(counts)
    left, floor = chart.x.start + 0.5, chart.y.start
    bars = [
        rect(left + place * wide, chart.y.at(count), wide - 1, floor - chart.y.at(count), "bar", f"{count:,} samples")
        for place, count in enumerate(counts)
        if count
    ]
    return svg(chart, [grid(chart, whole_x=False), *bars], name)
