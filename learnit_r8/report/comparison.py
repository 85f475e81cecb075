"""The page of several runs: their curves over each other, their figures, and the settings that differ."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.durable_io import open_output
from ..dashboard.render.svg import circle, frame, grid, line, range_of, rect, svg
from ..dashboard.state.view import View
from ..dashboard.watch import view_of
from ..events.text import number
from ..journal.run import Run, find_run, names_of
from .charts import WIDE, text
from .page import document, panel
from .style import comparison

LOOKS = ("accent", "warn", "rate", "alert", "q2", "q4")
DASHES = ("", "6 4", "2 3")
OWN_STYLE = (
    ".key{white-space:nowrap}.key::before{display:none}.key svg{width:28px;height:8px;margin-right:6px}"
    ".run{fill:none;stroke-width:1.8}.compared td{text-align:right}"
)
COLUMNS, ZONES, MOST_METRICS = 400, 100, 24

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values."""


def write_comparison(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write a page that compares runs.

    Args:
        runs: At least two run folders, or names of runs; see `find_run`.
        out: The file to write.

    Returns:
        Its path.

    Raises:
        UnreadableRun: a folder holds no run.
        ValueError: there are fewer than two.
        OSError: the file cannot be written.
    """
    if len(runs) < 2:
        raise ValueError(f"runs must be two or more, got {len(runs)}.")
    found = [Run(find_run(os.fspath(run))) for run in runs]
    views = [view_of(run) for run in found]
    path = Path(out)
    text = comparison_page(views, names_of(found))
    with open(open_output(path), "w", encoding="utf-8") as file:
        file.write(text)
    return path


def comparison_page(views: Sequence[View], names: Sequence[str]) -> str:
    """The page; the names are those of the runs."""
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 28 8"><polyline style="{_look(place)}" points="0,4 28,4"/></svg>'
        f"{text(name, 60)}</span>"
        for place, name in enumerate(names)
    )
    body = "".join(panel(text(title, 60), chart, note) for title, chart, note in _charts(views, names))
    table = comparison(views, names)
    figures = panel("Figures and settings", table, "The best figure is in bold; settings only where they differ.")
    header = f'<header><p class="brand">learnit::r8</p><h1>{len(views)} runs</h1><p class="what">{keys}</p></header>'
    return document(f"{len(views)} runs", [header, body + figures], OWN_STYLE)


def _look(place: int) -> str:
    dash = DASHES[place // len(LOOKS) % len(DASHES)]
    return f"fill:none;stroke:var(--{LOOKS[place % len(LOOKS)]});stroke-width:1.8" + (
        f";stroke-dasharray:{dash}" if dash else ""
    )


def _charts(views: Sequence[View], names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Title, chart and note: of the losses of batches, then of every metric that a run has logged."""
    yield "Loss of the batches", _chart("loss of the batches", [_losses(view) for view in views], names), "Means."
    metrics = dict.fromkeys(name for view in views for name in view.metrics)
    for metric in list(metrics)[:MOST_METRICS]:
        bests = (
            f"{text(name, 40)}: {number(view.bests[metric].value, 4)} at step {view.bests[metric].step:,}"
            for view, name in zip(views, names, strict=True)
            if metric in view.bests
        )
        yield metric, _chart(metric, [_metric(view, metric) for view in views], names), f"Best: {'; '.join(bests)}."


def _losses(view: View) -> Curve:
    last = max(1, view.step)
    num = min(COLUMNS, last)
    return (np.arange(num) + 0.5) * last / num, view.loss.columns(num, 0, last).mean


def _metric(view: View, name: str) -> Curve:
    points = [point for point in view.metrics.get(name, ()) if math.isfinite(point.value)]
    return np.array([float(point.step) for point in points]), np.array([point.value for point in points])


def _chart(title: str, curves: Sequence[Curve], names: Sequence[str]) -> str:
    """Curves of runs over each other, with their values below the pointer."""
    values = np.concatenate([curve[1] for curve in curves])
    last = max([1.0, *(float(steps[-1]) for steps, _ in curves if len(steps))])
    low, high = range_of(values, share=0.995)
    chart = frame(WIDE, 300, (0.0, last), (low - 0.04 * (high - low), high + 0.04 * (high - low)))
    parts = [grid(chart, x_name="step")]
    at: list[Callable[[float], float]] = []
    for steps, known in curves:
        at.append(_value_at(steps, known))
    for place in range(ZONES):
        first, end = place * last / ZONES, (place + 1) * last / ZONES
        said = [f"{text(name, 40)} {number(value(end), 4)}" for name, value in zip(names, at, strict=True)
                if math.isfinite(value(end))]  # fmt: skip
        left, right = chart.x.at(first), chart.x.at(end)
        where = f"step {end:,.0f}: {', '.join(said)}"
        parts.append(rect(left, chart.y.end, right - left, chart.y.start - chart.y.end, "zone", where))
    for place, (steps, known) in enumerate(curves):
        parts.append(line(chart, steps, known, "", style=f"{_look(place)};pointer-events:none"))
        if len(steps) == 1:
            parts.append(circle(chart.x.at(steps[0]), chart.y.at(known[0]), 3, "dot", text(names[place], 40)))
    return svg(chart, parts, f"{text(title)} over the steps, of {len(curves)} runs")


def _value_at(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Callable[[float], float]:
    known = np.isfinite(values)
    steps, values = steps[known], values[known]

    def value(step: float) -> float:
        place = int(np.searchsorted(steps, step, side="right")) - 1
        return float(values[place]) if place >= 0 else math.nan

    return value
