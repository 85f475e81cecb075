"""The regions of the data map: boxes to tick, each with its samples and their ids, without a script."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dashboard.export import write_csv
from ..dashboard.render.svg import Axis
from ..events.text import number
from .charts import map_chart, map_frame, text
from .data import DataMap, ReportData, circled, rows_of
from .gallery import Look, card_text

GRID = (8, 6)
"""Regions along the variation, and along the mean."""

SHOWN = 6
"""Samples of a region that are shown, those of the highest mean."""

MOST_IDS = 100_000
"""Ids in a page; of more samples, only the command that lists them is given."""

BEYOND = 26.0
"""A bound that no margin reaches, in place of infinity, which the shell takes for an option."""

REGION_STYLE = """
.regions{position:relative}.regions>input{position:absolute;opacity:0;pointer-events:none}
.brush{position:relative}.brush>label{position:absolute;cursor:pointer;border-radius:3px}
.brush>label:hover{box-shadow:inset 0 0 0 1px var(--faint)}
.picked{max-height:640px;overflow-y:auto}
.picked>div{display:none;border-top:1px solid var(--rule);padding-top:8px;margin-top:8px}
.picked a{color:var(--accent)}.picked code{overflow-wrap:anywhere}
"""


class Region(NamedTuple):
    """A box of the map.

    Attributes:
        spread, mean: Its ends, from the first to below the second.
        box: Left, top, width and height, as shares of the picture.
        indices: int64[K], the samples in it, those of the highest mean first.
    """

    spread: tuple[float, float]
    mean: tuple[float, float]
    box: tuple[float, float, float, float]
    indices: NDArray[np.int64]


def regions_of(data_map: DataMap) -> list[Region]:
    """The regions that hold any samples; the outermost reach to infinity."""
    chart = map_frame(data_map)
    known = np.flatnonzero(np.isfinite(data_map.mean) & np.isfinite(data_map.spread))
    known = known[np.argsort(-data_map.mean[known], kind="stable")]
    ends = [_ends(axis, count) for axis, count in zip((chart.x, chart.y), GRID, strict=True)]
    columns, rows = (
        np.searchsorted(edges[1:-1], values[known], side="right")
        for edges, values in zip(ends, (data_map.spread, data_map.mean), strict=True)
    )
    found = []
    for column, row in np.ndindex(*GRID):
        indices = known[(columns == column) & (rows == row)]
        if len(indices):
            spread, mean = ((edges[at], edges[at + 1]) for edges, at in zip(ends, (column, row), strict=True))
            left, right = (chart.x.at(value) / chart.width for value in spread)
            low, high = (chart.y.at(value) / chart.height for value in mean)
            found.append(Region(spread, mean, (left, high, right - left, low - high), indices))
    return found


def _ends(axis: Axis, count: int) -> list[float]:
    """The ends of the stretches of an axis, rounded to what is printed."""
    inner = [float(f"{value:.3g}") for value in np.linspace(axis.low, axis.high, count + 1)[1:-1]]
    return [-math.inf, *inner, math.inf]


def map_panels(data: ReportData, look: Look) -> Iterator[tuple[str, str, str]]:
    """Title, body and note of the map; nothing without one."""
    data_map = data.data_map
    if data_map is None:
        return
    circles = "suspects" if data.suspects else "the ten highest"
    what = (
        f"mean loss and how much it varied over {data_map.num_epochs} epochs"
        if data_map.num_epochs
        else "mean margin, by which the strongest other class beats its label, and how much that varied over its visits"
    )
    note = (
        f"Every sample by its {what}: easy ones below, wavering ones on the right, hard or mislabelled ones at the "
        f"upper left. Circles: {circles}. Tick regions of the map to see their samples and to save their ids."
    )
    assert data.data_map is not None
    assert data.samples is not None
    regions, samples = regions_of(data.data_map), data.samples
    marked = [(index, samples.name_of(index)) for index in circled(data).tolist()]
    shown = [region.indices[:SHOWN] for region in regions]
    # Together, as the page has room for so many pictures.
    cards = iter(look.of(rows_of(data, np.concatenate(shown))) if regions else [])
    inputs, boxes, lists, rules = [], [], [], []
    for place, (region, some) in enumerate(zip(regions, shown, strict=True)):
        name = f"region-{place}"
        words = _words(region, is_margin=not data.data_map.num_epochs)
        left, top, wide, tall = (f"{100 * part:.2f}%" for part in region.box)
        where = f"left:{left};top:{top};width:{wide};height:{tall}"
        inputs.append(f'<input type="checkbox" id="{name}" aria-label="{words}">')
        boxes.append(f'<label for="{name}" title="{words}"></label>')
        figures = "".join(card_text(next(cards)) for _ in some)
        lists.append(
            f'<div class="{name}"><p>{words}. {"".join(_exports(region, data))}</p>'
            f'<div class="gallery">{figures}</div></div>'
        )
        rules.append(
            f'.brush label[for="{name}"]{{{where}}}'
            f"#{name}:checked~.picked .{name}{{display:block}}"
            f'#{name}:checked~.brush label[for="{name}"]{{background:var(--accent-soft);'
            "box-shadow:inset 0 0 0 2px var(--accent)}"
            f'#{name}:focus-visible~.brush label[for="{name}"]{{outline:2px solid var(--accent)}}'
        )
    yield (
        "Data map",
        (
            f'<style>{"".join(rules)}</style><div class="regions">{"".join(inputs)}'
            f'<div class="brush">{map_chart(data.data_map, marked)}{"".join(boxes)}</div>'
            f'<div class="picked">{"".join(lists)}</div></div>'
        ),
        note,
    )


def _words(region: Region, *, is_margin: bool) -> str:
    what = "margin" if is_margin else "loss"
    return f"mean {what} {_span(region.mean)}, varies by {_span(region.spread)}: {len(region.indices):,} samples"


def _span(ends: tuple[float, float]) -> str:
    low, high = ends
    if math.isinf(low) or math.isinf(high):
        return f"below {number(high)}" if math.isfinite(high) else f"{number(low)} or more"
    return f"{number(low)} to {number(high)}"


def _exports(region: Region, data: ReportData) -> Iterator[str]:
    """A link that saves the ids, and the command that lists the samples."""
    assert data.samples is not None
    assert data.data_map is not None
    if len(data.samples.loss) <= MOST_IDS:
        out = io.StringIO(newline="")
        named = ((index, data.samples.name_of(index)) for index in np.sort(region.indices).tolist())
        write_csv(out, ("index", "name"), named)
        address = base64.b64encode(out.getvalue().encode()).decode()
        yield f'<a download="region.csv" href="data:text/csv;base64,{address}">Save their ids as CSV</a>. '
    if not data.data_map.num_epochs and data.run is not None:
        spans = " ".join(
            f"--{name} {max(low, -BEYOND):g} {min(high, BEYOND):g}"
            for name, (low, high) in (("margin", region.mean), ("variability", region.spread))
        )
        yield f"<code>learnit-r8 samples {text(shlex.quote(str(data.run.folder)))} {spans} --csv</code>"
