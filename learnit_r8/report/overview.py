"""The data at a glance: quality of classes, what the model confuses, calibration, what was learnt when."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..dashboard.render.svg import circle, frame, grid, label, line, svg
from ..dashboard.text import number, share
from .charts import HALF, histogram, text
from .data import ReportData, confusion_of, label_text
from .gallery import confusion_table
from .style import opening, wide_table

MOST_CLASSES = 100
"""Classes in the table, those of the lowest accuracy."""

Panel = tuple[str, str, str]
"""Title, body and note."""


def overview_panels(data: ReportData) -> Iterator[Panel]:
    """The calibration of the model and when it learnt the samples; nothing without predictions."""
    if data.overview is not None:
        yield _calibration(data)
        known = data.overview.given >= 0
        learned, forgotten = data.overview.learned[known], data.overview.forgotten[known].astype(np.int64)
        never = float(np.isnan(learned).mean())
        charts = []
        for name, values in (
            ("first visit at which the label was predicted", learned[np.isfinite(learned)].astype(np.int64)),
            ("times it was forgotten", forgotten),
        ):
            if len(values):
                most = int(np.quantile(values, 0.995)) + 1
                counts = np.bincount(np.minimum(values, most))
                charts.append(f"<h3>{name}</h3>{histogram(tuple(counts.tolist()), (-0.5, most + 0.5), name)}")
        note = (
            f"The label of {share(never, 1)} of the samples was never predicted; that of "
            f"{share(float((forgotten > 0).mean()), 1)} was predicted at a visit and was not at the next. "
            "The outermost bars include everything beyond them."
        )
        yield ("Learnt when, forgotten how often", "".join(charts), note)


def overview_tables(data: ReportData) -> Iterator[Panel]:
    """The tables that take the whole width; nothing without predictions."""
    overview, samples = data.overview, data.samples
    if overview is None or samples is None or data.verdict is None:
        return
    names = overview.names(samples.group, samples.group_labels)
    classes = sorted(overview.classes(data.verdict.indices, names), key=lambda one: one.accuracy)
    rows = (
        f"<tr><td>{text(one.label, 40)}</td><td>{one.size:,}</td><td>{share(one.accuracy, 1)}</td>"
        f"<td>{number(one.margin)}</td><td>{number(one.learned) if math.isfinite(one.learned) else 'never'}</td>"
        f"<td>{number(one.forgotten)}</td><td>{one.num_suspects:,}</td><td>{text(label_text(one.rival), 40)}</td></tr>"
        for one in classes[:MOST_CLASSES]
    )
    columns = ("label", "samples", "predicted", "mean margin", "learnt at visit", "forgotten", "suspects", "rival")
    shown = f"The {MOST_CLASSES} worst of {len(classes):,} classes" if len(classes) > MOST_CLASSES else "The classes"
    note = (
        f"{shown}, worst first. Predicted: the share of their samples whose label was predicted at the last visit, "
        "before the step. Learnt: the median of the first such visits. Forgotten: how often, on average, a sample's "
        "label was predicted at a visit and was not at the next. Rival: the class predicted most instead."
    )
    yield "Quality of each class", wide_table("classes", columns, rows, is_tall=True), note
    given, predicted, counts = overview.confusion()
    labels, others = ([label_text(names.get(one, one)) for one in side.tolist()] for side in (given, predicted))
    confusion = confusion_of(labels, others, counts.tolist())
    if confusion is not None:
        note = "Samples by the label they have and the other class that the model predicted at their last visit."
        yield "What the model confuses", confusion_table(confusion, "predicted"), note


def _calibration(data: ReportData) -> Panel:
    """Return the reliability diagram of the end, and calibration over the kept epochs."""
    title = "Calibration"
    if not data.calibrations:
        reason = "the losses are not the cross entropies of the predictions, so how sure the model was is unknown"
        return title, f"<p>Not shown: {reason}.</p>", ""
    last = data.calibrations[-1][1]
    chart = frame(HALF, 220, (0.0, 1.0), (0.0, 1.0))
    known = last.counts > 0
    parts = [
        grid(chart, whole_x=False),
        line(chart, np.array([0.0, 1.0]), np.array([0.0, 1.0]), "plan"),
        line(chart, last.confidence[known], last.accuracy[known], "metric"),
    ]
    for count, sure, right in zip(last.counts, last.confidence, last.accuracy, strict=True):
        if count:
            words = f"{count:,} samples: {share(sure, 0)} sure, {share(right, 0)} right"
            parts.append(circle(chart.x.at(sure), chart.y.at(right), 3, "dot", words))
    parts.append(label(chart.x.end, chart.y.start - 6, "how sure", "label faint", anchor="end"))
    parts.append(label(chart.x.start + 6, chart.y.end + 10, "how often right", "label faint"))
    rows = [
        (epoch + 1, one.mean(one.confidence), one.mean(one.accuracy), one.error) for epoch, one in data.calibrations
    ]
    numbers = opening(("epoch", "mean confidence", "predicted right", "calibration error"), rows, "over the run")
    gap = last.mean(last.confidence) - last.mean(last.accuracy)
    word = "too sure" if gap > 0 else "not sure enough"
    note = (
        f"Every sample at its last visit, before the step: how sure the model was of the class it predicted, and how "
        f"often that was the label. On average it is {share(abs(gap), 1)} {word}; calibration error "
        f"{number(last.error, 2)}. These are samples that it was trained on; on new ones expect it to be worse."
    )
    return title, svg(chart, parts, "how often right by how sure") + _over_the_run(rows) + numbers, note


def _over_the_run(rows: list[tuple[int, float, float, float]]) -> str:
    """Mean confidence and accuracy over the kept epochs."""
    if len(rows) < 2:
        return ""
    epochs, sure, right, _ = (np.array(column, float) for column in zip(*rows, strict=True))
    chart = frame(HALF, 120, (float(epochs[0]), float(epochs[-1])), (0.0, 1.0))
    parts = [grid(chart, x_name="epoch"), line(chart, epochs, sure, "metric m1"), line(chart, epochs, right, "metric")]
    key = '<span class="key m1">how sure</span><span class="key m0">how often right</span>'
    return f'{svg(chart, parts, "confidence and accuracy over the epochs")}<p class="note">{key}</p>'
