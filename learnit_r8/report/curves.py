"""The curves of a page: losses, rate and metrics of one run, or of many over each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..dashboard.state.curve import SMOOTH, range_of, smoothed
from ..dashboard.state.view import View
from ..dashboard.text import is_held_out, stem_of
from ..events.incident import Incident
from ..events.text import clean, number
from .document import Data, chart, curve, known, section

POINTS = 500
"""Most points of a curve."""
FIT = 0.8
"""Share of the steps, the last ones, that the losses on the page fit."""
MARKS = {"R": "resumed", "D": "cool-down"}


def losses_of(view: View, name: str = "loss") -> list[Data]:
    """The losses of batches: smoothed, and behind it their means and the lowest and highest of each stretch."""
    steps, low, mean, high = view.loss.points(POINTS)
    raw = curve(f"{name} of the batches", steps, mean, kind="faint", low=known(low), high=known(high))
    return [raw, curve(f"{name}, smoothed", steps, smoothed(mean))] if len(mean) > SMOOTH else [raw | {"kind": ""}]


def points_of(view: View, name: str, look: str) -> Data:
    """The values of a metric."""
    points = [point for point in view.metrics[name] if math.isfinite(point.value)]
    return curve(clean(name, 40), [p.step for p in points], [p.value for p in points], look, dots=True)


def best_point(view: View, name: str, look: str, words: str = "best") -> list[Data]:
    """The best value of a metric as a point with its words beside it; nothing without one."""
    best = view.bests.get(name)
    if best is None:
        return []
    label = f"{words} {number(best.value, 4)} at step {best.step:,}"
    return [{"x": best.step, "y": best.value, "label": label, "look": look}]


def incident_marks(incidents: Sequence[Incident]) -> list[Data]:
    """The incidents as marks of a chart, each with its step and what it was beside it."""
    return [{"x": each.step, "label": clean(each.label, 60), "text": clean(each.headline)} for each in incidents]


def fit_of(series: Sequence[Data], last: float) -> tuple[float, float] | None:
    """The range of the last 80 % of the steps; None where the whole range is hardly larger."""
    pairs = [pair for one in series for pair in zip(one["x"], one["y"], strict=True) if pair[1] is not None]
    late = [value for step, value in pairs if step >= (1 - FIT) * last]
    every = [value for one in series for value in (*one["y"], *one.get("high", ())) if value is not None]
    if not late or not every:
        return None
    # The highest of a batch may lie beyond: it is a spike.
    low, high = range_of(late)
    return (low, high) if max(every) - min(every) > 1.4 * (high - low) else None


def bare_marks(view: View) -> list[Data]:
    """The marks of incidents without words, which stand in the chart of the losses."""
    return [{"x": mark["x"], "text": mark["text"]} for mark in incident_marks(view.incidents)]


def loss_section(view: View) -> Iterator[Data]:
    """The losses of training and of data that is not trained on, with every event that has a mark."""
    if view.loss.is_empty:
        return
    held_out = [name for name in view.metrics if stem_of(name) == "loss" and is_held_out(name)]
    last = float(max(1, view.loss.last_step, view.step))
    series, points = losses_of(view), list[Data]()
    for place, name in enumerate(held_out):
        look = f"c{1 + place % 5}"
        series.append(points_of(view, name, look))
        points += best_point(view, name, look, f"best {clean(name, 40)}")
    notes = [point["label"] for point in points]
    if view.best is not None and not points:
        said = f"best smoothed {number(view.best.value, 4)} at step {view.best.step:,}"
        points.append({"x": view.best.step, "y": view.best.value, "label": said, "look": "c0"})
    others = [
        {"x": each.step, "label": MARKS[each.mark], "text": clean(each.text), "look": "event"}
        for each in view.marks
        if each.mark in MARKS
    ]
    marks = incident_marks(view.incidents)
    saved = [each.step for each in view.marks if each.mark == "C"]
    legend: list[Data] = [{"kind": "mark", "name": "incident"}] * bool(marks)
    legend += [{"kind": "mark", "look": "event", "name": "resumed, cool-down"}] * bool(others)
    legend += [{"kind": "saved", "name": "checkpoint"}] * bool(saved)
    legend += [{"kind": "best", "name": "best", "look": points[0]["look"]}] * bool(points)
    fit = fit_of(series, last)
    note = "; ".join([*notes, *(["the range fits the last 80 % of the steps"] if fit else [])])
    drawn = chart(
        "loss of the batches over the steps", series, x_name="step", log=False, fit=fit,
        marks=[*marks, *others], points=points, saved=saved, legend=legend, height=280, **{"from": 0, "to": last},
    )  # fmt: skip
    yield section("Loss", drawn, note=f"{note[:1].upper()}{note[1:]}. Drag to look closer." if note else "")


def rate_section(view: View) -> Iterator[Data]:
    """The rate so far, and as planned."""
    if view.lr.is_empty:
        return
    steps, _, mean, _ = view.lr.points(POINTS)
    total = view.run.total_steps if view.run is not None else None
    series = [curve("rate", steps, mean, "c2")]
    if len(view.lr_plan) > 1 and total:
        series.append(curve("planned", np.linspace(0, total, len(view.lr_plan)), view.lr_plan, kind="plan"))
    drawn = chart("learning rate over the steps", series, x_name="step", marks=bare_marks(view), **{"from": 0})
    yield section("Learning rate", drawn, kind="half")


def metric_section(view: View, title: str, names: Sequence[str]) -> Data:
    """Metrics with one stem in one chart: those of training and of validation."""
    series = [points_of(view, name, f"c{place % 6}") for place, name in enumerate(names)]
    points = [point for place, name in enumerate(names) for point in best_point(view, name, f"c{place % 6}")]
    more = {"from": 0, "to": float(max(1, view.step)), "points": points, "marks": bare_marks(view)}
    return section(clean(title, 60), chart(f"{title} over the steps", series, x_name="step", **more), kind="half")
