"""The pages of several panels, overview and data: the panels that fit, and their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, beside
from ..theme import Theme
from .curves import loss_panel, metric_panel, rate_panel
from .header import incident_line, loss_line, metric_line, speed_line, total_line
from .samples import groups_panel, loss_histogram, quartile_panel, ribbon_panel, uses_histogram
from .texts import events_panel

SIDE_BY_SIDE = 72
"""Least width of two charts side by side."""

THREE = 110
"""Least width of three charts side by side."""


class Section(NamedTuple):
    """A horizontal section of the screen.

    Attributes:
        least: Rows it needs.
        wanted: Rows it can fill.
        weight: Its share of the rows that are left over.
        rank: The section of the highest rank is dropped first.
        draw: Returns its lines, given the number of rows.
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
    """A section of one line."""
    return Section(1, 1, 0, rank, lambda rows: [line])


def overview_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Progress, numbers, the last incident, the losses beside the validation metric, and events, as much as fits."""
    lines = (
        (total_line(view, width, theme, scene), 1), (loss_line(view, width), 2), (speed_line(view, width, scene), 4),
        (metric_line(view, width, theme), 7), (incident_line(view, width, theme, scene), 3),
    )  # fmt: skip
    sections = [one_row(line, rank) for line, rank in lines if line]
    sections.append(Section(5, 11, 3, 3, lambda rows: charts_row(view, ui, width, rows, theme)))
    sections.append(Section(2, 4, 1, 7, lambda rows: events_panel(view, ui, width, rows, theme, scene)))
    return stacked(sections, height)


def charts_row(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """The losses, the validation metric, and the learning rate where there is room, or no metric."""
    if width < SIDE_BY_SIDE:
        return loss_panel(view, ui, width, height, theme)
    side = max(26, width // 3 if width < THREE else width // 4)
    blocks = []
    if view.metrics:
        blocks.append((metric_panel(view, ui, side, height, theme), side))
    if not view.metrics or width >= THREE:
        blocks.append((rate_panel(view, side, height, theme), side))
    loss = width - len(blocks) * (side + 1)
    return beside([(loss_panel(view, ui, loss, height, theme), loss), *blocks], height, theme.glyphs)


def data_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The quartiles over time, their table, the groups, and the histograms of uses and losses."""
    side, most = (width - 1) // 2, len(view.groups) + 2

    def histograms(rows: int) -> list[Line]:
        left, wide = uses_histogram(view, side, rows, theme), width - 1 - side
        return beside([(left, side), (loss_histogram(view, wide, rows, theme), wide)], rows, theme.glyphs)

    groups = Section(min(most, 8), most, 0, 0, lambda rows: groups_panel(view, width, rows, theme))
    sections = [
        Section(4, 8, 3, 2, lambda rows: ribbon_panel(view, ui, width, rows, theme)),
        Section(6, 6, 0, 1, lambda rows: quartile_panel(view, width, rows, theme)),
        *([groups] if view.groups else []),
        Section(7, 7, 1, 3, histograms),
    ]
    return stacked(sections, height)
