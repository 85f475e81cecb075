"""The machine over time: how busy cores and GPUs were, and how full the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..dashboard.render.svg import circle, frame, grid, line, range_of, svg
from ..dashboard.state.view import View
from ..dashboard.text import clock, number
from ..events import MachineLoad
from .charts import HALF

GB = 1e9
UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
MOST_DOTS = 128


class Panel(NamedTuple):
    """A chart with its note, and the columns and rows of its numbers."""

    title: str
    chart: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[float | str, ...]]


class Curve(NamedTuple):
    """A quantity of the machine: its name, and how it is read off a load; NaN where it is not known."""

    name: str
    read: Callable[[MachineLoad], float]


def machine_charts(view: View) -> Iterator[Panel]:
    """The panels of the machine; none where the run does not tell its load."""
    loads = list(view.loads)
    if not loads:
        return
    gpus = max(len(load.gpus) for load in loads)
    called = "the GPU" if gpus == 1 else f"{gpus} GPUs, mean"
    used = [
        Curve("all cores", lambda load: 100 * load.cpu),
        Curve("this process", lambda load: 100 * load.own_cpu / max(1, load.num_cpus)),
        Curve(called, lambda load: 100 * _over_gpus(load, 0) / max(1, len(load.gpus))),
    ]
    held = [
        Curve("in use", lambda load: load.used / GB),
        Curve("this process", lambda load: load.own / GB),
        Curve("the GPU" if gpus == 1 else f"{gpus} GPUs", lambda load: _over_gpus(load, 1) / GB),
    ]
    newest = loads[-1]
    sizes = [f"{number(newest.total / GB)} GB in all"] if math.isfinite(newest.total) else []
    if gpus and math.isfinite(_over_gpus(newest, 2)):
        sizes.append(f"{number(_over_gpus(newest, 2) / GB)} GB on {held[2].name}")
    note = f"GB; {', '.join(sizes)}. " if sizes else "GB. "
    for panel in (
        _panel("Use of the machine", loads, used, f"Percent of {newest.num_cpus} cores. ", 100.0),
        _panel("Memory of the machine", loads, held, note, 0.0),
    ):
        if len(panel.columns) > 1:
            yield panel


def _over_gpus(load: MachineLoad, place: int) -> float:
    """The sum of a quantity over the GPUs; NaN without any."""
    known = [gpu[place] for gpu in load.gpus if len(gpu) > place]
    return sum(known) if known else math.nan


def _panel(title: str, loads: list[MachineLoad], curves: list[Curve], note: str, top: float) -> Panel:
    seconds = [load.seconds for load in loads]
    size, unit = next(((size, unit) for size, unit in UNITS if seconds[-1] >= 2 * size), UNITS[-1])
    values = [[curve.read(load) for load in loads] for curve in curves]
    high = max(range_of([0.0, *(value for row in values for value in row)])[1], top)
    chart = frame(HALF, 220, (0.0, max(seconds[-1] / size, 1e-9)), (0.0, high * 1.02))
    parts = [grid(chart, x_name=unit, whole_x=False)]
    shown = [place for place, row in enumerate(values) if any(map(math.isfinite, row))]
    times = [second / size for second in seconds]
    for place in shown:
        parts.append(line(chart, times, values[place], f"metric m{place}"))
        for at, value in list(zip(times, values[place], strict=True))[:: max(1, -(-len(loads) // MOST_DOTS))]:
            if math.isfinite(value):
                said = f"{curves[place].name}, {clock(at * size)}: {number(value, 3)}"
                parts.append(circle(chart.x.at(at), chart.y.at(value), 2.0, f"dot m{place}", said))
    keys = " ".join(f'<span class="key m{place}">{curves[place].name}</span>' for place in shown)
    rows: list[tuple[float | str, ...]]
    rows = [(clock(seconds[at]), *(values[place][at] for place in shown)) for at in range(len(loads))]
    columns = ("training time", *(curves[place].name for place in shown))
    return Panel(title, svg(chart, parts, f"{title.lower()} over the training time"), note + keys, columns, rows)
