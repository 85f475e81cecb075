"""Axes and shapes of charts as SVG text. Colours are style classes, so that a page can be light or dark, or styles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...events.text import number
from .chart import round_ticks

MARGIN = (56, 14, 16, 30)
"""Left, top, right, bottom, in pixels."""


class Axis(NamedTuple):
    """An axis that maps values from low to high to pixels from start to end.

    Attributes:
        low, high: Values at the ends, low < high.
        start, end: Pixels.
        log: Whether equal ratios have equal lengths; then low > 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: ArrayLike) -> NDArray[np.float64]:
        """Pixels of values, clipped to the ends."""
        array = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.log:
            array, low, high = np.log(np.maximum(array, low)), math.log(low), math.log(high)
        return self.start + np.clip((array - low) / (high - low), 0, 1) * (self.end - self.start)

    def at(self, value: float) -> float:
        """The pixel of one value."""
        return float(self.place(value))

    def ticks(self, most: int = 6) -> list[float]:
        """Round values along the axis."""
        return round_ticks(self.low, self.high, most, is_log=self.log)


def range_of(values: ArrayLike, *, log: bool = False, share: float = 1.0) -> tuple[float, float]:
    """Lowest and highest finite value, apart from each other; (0, 1) or (0.1, 1) if there is none.

    Args:
        values: Any shape.
        log: Whether only values > 0 count.
        share: Share of the values that must fit; the highest of the others may lie beyond.
    """
    array = np.asarray(values, np.float64).ravel()
    array = array[np.isfinite(array) & ((array > 0) if log else True)]
    if not len(array):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(array.min()), float(np.quantile(array, share))
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        return (low / 2, low * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
    return low, high


class Frame(NamedTuple):
    """The axes of a chart, and its size."""

    x: Axis
    y: Axis
    width: float
    height: float


def frame(
    width: float,
    height: float,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    log_x: bool = False,
    log: bool = False,
) -> Frame:
    """The axes of a chart of this size, with room for labels."""
    left, top, right, bottom = MARGIN
    return Frame(Axis(*x, left, width - right, log_x), Axis(*y, height - bottom, top, log), width, height)


def points(x: ArrayLike, y: ArrayLike) -> str:
    """Coordinates of a polyline, without points whose y is not finite."""
    pairs = zip(np.asarray(x, float).tolist(), np.asarray(y, float).tolist(), strict=True)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs if math.isfinite(b))


def line(chart: Frame, x: ArrayLike, y: ArrayLike, kind: str, *, style: str = "") -> str:
    """A curve; ``style`` is for a page without a style sheet."""
    known = np.isfinite(np.asarray(y, float))
    along, up = chart.x.place(np.asarray(x)[known]), chart.y.place(np.asarray(y)[known])
    return f'<polyline {_look(kind, style)} points="{points(along, up)}"/>'


def band(
    chart: Frame, x: ArrayLike, low: ArrayLike, high: ArrayLike, kind: str, title: str = "", *, style: str = ""
) -> str:
    """The area between two curves."""
    low, high, x = (np.asarray(values, float) for values in (low, high, x))
    known = np.isfinite(low) & np.isfinite(high)
    there = chart.x.place(x[known])
    above, below = points(there, chart.y.place(high[known])), points(there[::-1], chart.y.place(low[known])[::-1])
    return f'<polygon {_look(kind, style)} points="{above} {below}">{hint(title)}</polygon>'


def _look(kind: str, style: str) -> str:
    return f'style="{style}"' if style else f'class="{kind}"'


def hint(text: str) -> str:
    """The tooltip of a shape; the text must be escaped already."""
    return f"<title>{text}</title>" if text else ""


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "", **more: str) -> str:
    """A rectangle; ``more`` are its other SVG attributes."""
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    where = f'x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.2f}" height="{max(0, height):.2f}"'
    return f'<rect class="{kind}" {where}{extra}>{hint(title)}</rect>'


def circle(x: float, y: float, radius: float, kind: str, title: str) -> str:
    """A dot or a ring."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{hint(title)}</circle>'


def label(x: float, y: float, text: str, kind: str = "label", anchor: str = "start", title: str = "") -> str:
    """A text, which must be escaped already."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}{hint(title)}</text>'


def grid(chart: Frame, *, x_name: str = "", whole_x: bool = True) -> str:
    """Grid lines with their values."""
    x, y = chart.x, chart.y
    parts = []
    for tick in y.ticks(max(2, int(abs(y.end - y.start) / 38))):
        at = y.at(tick)
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(label(x.start - 8, at + 4, number(tick), anchor="end"))
    for tick in x.ticks(max(2, int((x.end - x.start) / 110))):
        at = x.at(tick)
        parts.append(f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start}" y2="{y.start + 4}"/>')
        parts.append(label(at, y.start + 17, f"{tick:,.0f}" if whole_x else number(tick), anchor="middle"))
    parts.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>')
    if x_name:
        # In the margin, where no curve is.
        parts.append(label(x.start - 8, y.start + 17, x_name, "label faint", anchor="end"))
    return "".join(parts)


def svg(chart: Frame, parts: Iterable[str], name: str) -> str:
    """An SVG image of its parts, with a name for screen readers."""
    size = f'viewBox="0 0 {chart.width:g} {chart.height:g}"'
    return f'<svg {size} role="img" aria-label="{name}">{"".join(parts)}</svg>'


def sparkline(values: Sequence[float], width: float = 96, height: float = 20) -> str:
    """A small curve for a line of text."""
    if sum(map(math.isfinite, values)) < 2:
        return ""
    low, high = range_of([0.0, *values])
    chart = Frame(Axis(0, len(values) - 1, 2, width - 2), Axis(low, high, height - 2, 2), width, height)
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return f'<svg class="spark" {size} aria-hidden="true">{line(chart, np.arange(len(values)), values, "mean")}</svg>'
