"""The pages of several panels, overview and data: the panels that fit, and their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...events import Event
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line
from ..theme import Theme
from .curves import loss_panel, metrics_section, rate_panel
from .header import Rows, epoch_line, loss_line, metric_line, speed_line, system_line, title_line, total_line
from .parts import beside
from .samples import (
    hardest_panel,
    histogram_line,
    loss_histogram,
    quartile_line,
    quartile_panel,
    ribbon_panel,
    uses_histogram,
)
from .texts import events_panel

SIDE_BY_SIDE = 72
"""Least width of two charts side by side."""

THREE = 110
"""Least width of three panels side by side."""

FOUR = 150
"""Least width with room for the user's metrics beside the charts."""


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


def head(view: View, ui: UiState, width: int, theme: Theme, scene: Scene) -> list[Section]:
    """Title, bars and numbers."""
    sections = [
        one_row(title_line(view, ui, width, theme, scene), 0),
        one_row(total_line(view, width, theme, scene), 1),
        one_row(epoch_line(view, width, theme), 9),
        one_row(loss_line(view, width), 2),
        one_row(speed_line(view, width, scene), 4),
    ]
    system = system_line(view, width, scene)
    if system:
        sections.append(one_row(system, 10))
    metrics = metric_line(view, width, theme)
    if metrics and width < FOUR:
        sections.append(one_row(metrics, 7))
    return sections


def overview_page(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Progress, charts, quartiles, samples and events, as much as fits."""
    sections = head(view, ui, width, theme, scene)
    sections.append(Section(5, 7 if height < 28 else 8, 3, 3, lambda rows: charts_row(view, ui, width, rows, theme)))
    quartiles = quartile_line(view, width)
    if height < 20 or width < 60:
        if quartiles:
            sections.append(one_row(quartiles, 8))
    else:
        sections.append(Section(6, 6, 0, 5, lambda rows: _cached(samples_row, view.survey, view, width, rows, theme)))
        histograms = histogram_line(view, width, theme)
        if histograms and width < THREE:
            sections.append(one_row(histograms, 9))
    if width >= SIDE_BY_SIDE and height >= 32:
        sections.append(Section(7, 8, 1, 11, lambda rows: _cached(hardest_row, view.survey, view, width, rows, theme)))
    sections.append(Section(2, 4, 1, 7, lambda rows: events_panel(view, ui, width, rows, theme, scene)))
    return stacked(sections, height)


def charts_row(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """Loss, learning rate, and the user's metrics where there is room."""
    if width < SIDE_BY_SIDE:
        return loss_panel(view, ui, width, height, theme)
    third = max(38, width // 5) if width >= FOUR and view.metrics else 0
    rate = max(26, (width - third) // 4)
    loss = width - rate - 1 - (third + 1 if third else 0)
    blocks = [(loss_panel(view, ui, loss, height, theme), loss), (rate_panel(view, rate, height, theme), rate)]
    if third:
        metrics = _cached(metrics_section, view.logged, view, third, height, theme)
        blocks.append((metrics, third))
    return beside(blocks, height, theme.glyphs)


_Panel = Callable[[View, int, int, Theme], list[Line]]

MOST_DRAWN = 32
_drawn: dict[object, tuple[Event, list[Line]]] = {}
"""Panels as they were drawn last, by their function and size, with the event that they were drawn from."""


def _cached(draw: _Panel, source: Event | None, view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Draw a panel that depends on one event only, or return what was drawn from this very event before."""
    if source is None:
        return draw(view, width, height, theme)
    # Themes of equal fields draw the same.
    key = (draw, width, height, theme, view.run.num_samples if view.run else 0)
    known = _drawn.get(key)
    if known is None or known[0] is not source:
        if len(_drawn) >= MOST_DRAWN:
            _drawn.clear()
        known = _drawn[key] = source, draw(view, width, height, theme)
    return known[1]


def samples_row(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """The quartile table, and histograms where there is room."""
    if width < THREE:
        return quartile_panel(view, width, height, theme)
    size = 80 if width < FOUR else 96
    left, histograms = quartile_panel(view, size, height, theme), _histograms(view, width - size - 1, height, theme)
    return beside([(left, size), *histograms], height, theme.glyphs)


def _histograms(view: View, width: int, height: int, theme: Theme) -> list[tuple[list[Line], int]]:
    """The histograms of uses and losses, and their widths."""
    side = (width - 1) // 2
    rest = width - 1 - side
    return [(uses_histogram(view, side, height, theme), side), (loss_histogram(view, rest, height, theme), rest)]


def hardest_row(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """The hardest samples, and the suspects where there is room."""
    if width < FOUR:
        return hardest_panel(view, width, height, theme)
    second = (width - 1) // 2
    first = width - 1 - second
    blocks = [
        (hardest_panel(view, first, height, theme), first),
        (hardest_panel(view, second, height, theme, listed="suspects"), second),
    ]
    return beside(blocks, height, theme.glyphs)


def data_page(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The quartiles over time, their table, and the histograms of uses and losses."""
    sections = [
        one_row(title_line(view, ui, width, theme, scene), 0),
        Section(4, 8, 3, 2, lambda rows: ribbon_panel(view, ui, width, rows, theme)),
        Section(6, 6, 0, 1, lambda rows: quartile_panel(view, width, rows, theme)),
    ]
    if width >= SIDE_BY_SIDE:
        sections.append(
            Section(7, 7, 1, 3, lambda rows: beside(_histograms(view, width, rows, theme), rows, theme.glyphs))
        )
    else:
        sections.append(one_row(histogram_line(view, width, theme), 3))
    return stacked(sections, height)


def overview_rows(view: View, scene: Scene) -> Rows:
    """The whole curve of the loss that is drawn."""
    return ("to step", "lowest", "mean", "highest"), view.loss.rows()


def data_rows(view: View, scene: Scene) -> Rows:
    """The quartile table."""
    survey = view.survey
    columns = () if survey is None else (survey.low, survey.high, survey.mean, survey.share, survey.uses)
    rows = ((f"Q{number}", *values) for number, values in enumerate(zip(*columns, strict=False), start=1))
    return ("quartile", "lowest loss", "highest loss", "mean loss", "share", "uses"), rows
