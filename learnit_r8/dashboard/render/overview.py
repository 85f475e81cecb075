"""The overview and the view of the data: which panels fit, and where they go."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...events import Event
from ..looking import Looking, Scene
from ..text import Line
from ..theme import Theme
from ..view import View
from .curves import loss_panel, metrics_panel, rate_panel
from .header import epoch_line, loss_line, metric_line, speed_line, title_line, total_line
from .parts import Memory, beside
from .quartiles import (
    flow_panel,
    histogram_line,
    loss_histogram,
    quartile_line,
    quartile_panel,
    uses_histogram,
)
from .ribbon import ribbon_panel
from .samples import hardest_panel
from .texts import events_panel

SIDE_BY_SIDE = 72
"""Cells from which two charts stand side by side."""

THREE = 110
"""Cells from which three panels do."""

FOUR = 150
"""Cells from which a chart has room for the user's metrics beside it."""


class Section(NamedTuple):
    """A stripe of the screen.

    Attributes:
        least: Rows it needs.
        wanted: Rows it fills well.
        weight: Its share of the rows that are left over.
        rank: Sections of the highest rank are dropped first.
        draw: Returns its lines, given its rows.
    """

    least: int
    wanted: int
    weight: int
    rank: int
    draw: Callable[[int], list[Line]]


def stacked(sections: list[Section], height: int) -> list[Line]:
    """Sections from the top: those that fit, each as high as it can be."""
    kept = list(sections)
    while kept and sum(section.least for section in kept) > height:
        kept.remove(max(kept, key=lambda section: section.rank))
    rows = [section.least for section in kept]
    left = height - sum(rows)
    for place, section in sorted(enumerate(kept), key=lambda item: item[1].rank):
        more = min(left, section.wanted - section.least)
        rows[place] += more
        left -= more
    weight = sum(section.weight for section in kept)
    for place, section in enumerate(kept):
        if section.weight:
            more = left * section.weight // weight
            left, weight = left - more, weight - section.weight
            rows[place] += more
    lines: list[Line] = []
    for section, size in zip(kept, rows, strict=True):
        block = section.draw(size)[:size]
        lines += block + [()] * (size - len(block))
    return lines


def one_row(line: Line, rank: int) -> Section:
    """A stripe of one line."""
    return Section(1, 1, 0, rank, lambda rows: [line])


def head(view: View, looking: Looking, width: int, theme: Theme, scene: Scene) -> list[Section]:
    """Title, bars and numbers."""
    sections = [
        one_row(title_line(view, looking, width, theme, scene), 0),
        one_row(total_line(view, width, theme, scene), 1),
        one_row(epoch_line(view, width, theme, scene), 9),
        one_row(loss_line(view, width, theme), 2),
        one_row(speed_line(view, width, theme, scene), 4),
    ]
    metrics = metric_line(view, width, theme)
    if metrics and width < FOUR:
        sections.append(one_row(metrics, 7))
    return sections


def overview_lines(view: View, looking: Looking, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Everything at a glance."""
    sections = head(view, looking, width, theme, scene)
    sections.append(
        Section(5, 7 if height < 28 else 8, 3, 3, lambda rows: charts_row(view, looking, width, rows, theme))
    )
    quartiles = quartile_line(view, width, theme)
    if height < 20 or width < 60:
        if quartiles:
            sections.append(one_row(quartiles, 8))
    else:
        sections.append(Section(6, 6, 0, 5, lambda rows: samples_row(view, width, rows, theme)))
        histograms = histogram_line(view, width, theme)
        if histograms and width < THREE:
            sections.append(one_row(histograms, 9))
    if width >= SIDE_BY_SIDE and height >= 32:
        sections.append(Section(7, 8, 1, 11, lambda rows: hardest_row(view, width, rows, theme)))
    sections.append(Section(2, 4, 1, 7, lambda rows: events_panel(view, looking, width, rows, theme)))
    return stacked(sections, height)


def charts_row(view: View, looking: Looking, width: int, height: int, theme: Theme) -> list[Line]:
    """Loss, learning rate, and the user's metrics where there is room."""
    if width < SIDE_BY_SIDE:
        return loss_panel(view, looking, width, height, theme)
    third = max(38, width // 5) if width >= FOUR and view.metrics else 0
    rate = max(26, (width - third) // 4)
    loss = width - rate - 1 - (third + 1 if third else 0)
    blocks = [
        (loss_panel(view, looking, loss, height, theme), loss),
        (rate_panel(view, rate, height, theme), rate),
    ]
    if third:
        metrics = _remembered(metrics_panel, view.logged, view, third, height, theme)
        blocks.append((metrics, third))
    return beside(blocks, height, theme.glyphs)


_MEMORY = Memory()


def _remembered(
    draw: Callable[[View, int, int, Theme], list[Line]],
    source: Event | None,
    view: View,
    width: int,
    height: int,
    theme: Theme,
) -> list[Line]:
    """Draw what comes from one event alone, unless it was drawn before."""
    if source is None:
        return draw(view, width, height, theme)
    # A theme stands for itself: dataclasses of the same fields draw the same.
    key = (draw, width, height, theme, view.run.num_samples if view.run else 0)
    return _MEMORY.draw(source, key, lambda: draw(view, width, height, theme))


def samples_row(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """The quartile table, and histograms where there is room."""
    return _remembered(_samples_row, view.survey, view, width, height, theme)


def _samples_row(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    if width < THREE:
        return quartile_panel(view, width, height, theme)
    table = 80 if width < FOUR else 96
    side = (width - table - 2) // 2
    rest = width - table - 2 - side
    blocks = [
        (quartile_panel(view, table, height, theme), table),
        (uses_histogram(view, side, height, theme), side),
        (loss_histogram(view, rest, height, theme), rest),
    ]
    return beside(blocks, height, theme.glyphs)


def hardest_row(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """The hardest samples, and the moves between quartiles where there is room."""
    return _remembered(_hardest_row, view.survey, view, width, height, theme)


def _hardest_row(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    if width < THREE:
        return hardest_panel(view, width, height, theme)
    flow = 42
    if width < FOUR:
        first = width - flow - 1
        blocks = [(hardest_panel(view, first, height, theme), first), (flow_panel(view, flow, height, theme), flow)]
        return beside(blocks, height, theme.glyphs)
    second = (width - flow - 2) // 2
    first = width - flow - 2 - second
    blocks = [
        (hardest_panel(view, first, height, theme), first),
        (hardest_panel(view, second, height, theme, listed="suspects"), second),
        (flow_panel(view, flow, height, theme), flow),
    ]
    return beside(blocks, height, theme.glyphs)


def data_lines(view: View, looking: Looking, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """What the scheduler does to the data."""
    sections = [
        one_row(title_line(view, looking, width, theme, scene), 0),
        Section(4, 8, 3, 2, lambda rows: ribbon_panel(view, looking, width, rows, theme)),
        Section(6, 6, 0, 1, lambda rows: quartile_panel(view, width, rows, theme)),
    ]
    if width >= SIDE_BY_SIDE:
        sections.append(Section(7, 7, 1, 3, lambda rows: _moves_row(view, width, rows, theme)))
    else:
        sections.append(Section(7, 7, 0, 4, lambda rows: flow_panel(view, width, rows, theme)))
        sections.append(one_row(histogram_line(view, width, theme), 3))
    return stacked(sections, height)


def _moves_row(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    flow = 38
    side = (width - flow - 2) // 2
    rest = width - flow - 2 - side
    blocks = [
        (flow_panel(view, flow, height, theme), flow),
        (uses_histogram(view, side, height, theme), side),
        (loss_histogram(view, rest, height, theme), rest),
    ]
    return beside(blocks, height, theme.glyphs)
