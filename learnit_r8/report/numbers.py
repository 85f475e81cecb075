"""The numbers under the pictures of a report, as tables that open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..dashboard.state.comparison import figures_of, settings_of
from ..dashboard.state.view import View
from ..dashboard.text import figure, number, setting
from .charts import QUARTERS, text
from .data import Flow, ReportData
from .style import wide_table

MOST_ROWS = 25


def opening(columns: Sequence[str], rows: Iterable[Sequence[object]], what: str = "numbers") -> str:
    """A table that is closed at first; of many rows, a few at equal distances and the last."""
    listed = list(rows)
    if not listed:
        return ""
    stride = max(1, -(-len(listed) // MOST_ROWS))
    chosen = listed[::stride] + ([listed[-1]] if (len(listed) - 1) % stride else [])
    head = "".join(f"<th>{text(name, 40)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in chosen)
    table = f"<table><thead><tr>{head}</tr></thead>{body}</table>"
    return f'<details><summary>{what}</summary><div class="wide">{table}</div></details>'


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else text(f"{value:,}" if isinstance(value, int) else value, 80)


def loss_numbers(view: View) -> str:
    """The curve of the loss."""
    return opening(("to step", "lowest", "mean", "highest"), view.loss.rows())


def rate_numbers(view: View) -> str:
    """The learning rates."""
    return opening(("to step", "rate"), ((step, mean) for step, _, mean, _ in view.lr.rows()))


def metric_numbers(view: View, names: Sequence[str]) -> str:
    """The values of metrics that share a chart."""
    if len(names) == 1:
        return opening(("step", "value"), ((point.step, point.value) for point in view.metrics[names[0]]))
    rows = ((text(name, 40), point.step, point.value) for name in names for point in view.metrics[name])
    return opening(("metric", "step", "value"), rows)


def ribbon_numbers(data: ReportData) -> str:
    """The bounds of the quarters."""
    columns = ("step", "lowest", *(f"{name} to" for name in QUARTERS))
    return opening(columns, ((int(row[0]), *row[1:].tolist()) for row in data.bounds))


def flow_numbers(flow: Flow) -> str:
    """The moves over the last stretch."""
    rows = ((QUARTERS[place], *row) for place, row in enumerate(flow.moves[-1].tolist()))
    return opening(("from", *(f"to {name}" for name in QUARTERS)), rows, "numbers of the last stretch")


def histogram_numbers(view: View) -> str:
    """The bins of both histograms."""
    survey = view.survey
    if survey is None:
        return ""
    uses = opening(("bin", "samples"), enumerate(survey.uses_counts, start=1), "numbers: uses")
    return uses + opening(("bin", "samples"), enumerate(survey.loss_counts, start=1), "numbers: losses")


def comparison(views: Sequence[View], names: Sequence[str]) -> str:
    """The figures of runs, the best one in bold, and the settings that differ."""
    rows = []
    for row in figures_of(views):
        cells = [figure(value) for value in row.values]
        marked = [f"<b>{cell}</b>" if place == row.better else cell for place, cell in enumerate(cells)]
        rows.append((text(row.name, 60), *marked))
    rows += [(text(one.name, 60), *(text(setting(value)) for value in one.values)) for one in settings_of(views)]
    body = (f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return wide_table("compared", ("", *(text(name, 40) for name in names)), body)
