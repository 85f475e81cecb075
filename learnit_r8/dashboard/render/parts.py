"""Parts of lines: bars, rules, sparklines, columns side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ...events.text import number
from ..text import Line, Span, clip, width_of
from ..theme import Glyphs


def bar(share: float, width: int, glyphs: Glyphs, style: str = "bar") -> Line:
    """A bar filled from the left, exactly ``width`` cells."""
    share = min(1.0, max(0.0, share)) if share == share else 0.0
    steps = len(glyphs.bar)
    eighths = round(share * width * steps)
    full, part = divmod(eighths, steps)
    filled = glyphs.bar[-1] * full + (glyphs.bar[part - 1] if part else "")
    return Span(filled, style), Span(glyphs.rest * (width - len(filled)), "rest")


def spark(values: Sequence[float], width: int, glyphs: Glyphs, *, least: float | None = None) -> str:
    """A sparkline of exactly ``width`` cells: the newest value at the right, spaces for NaN.

    Its lowest level stands for ``least``; by default for the smallest value.
    """
    shown = list(values[-width:]) if width > 0 else []
    known = [value for value in shown if math.isfinite(value)]
    if not known:
        return " " * width
    low, high = (min(known) if least is None else least), max(known)
    top = len(glyphs.levels) - 1
    scale = (top - 1) / (high - low) if high > low else 0.0
    text = "".join(
        glyphs.levels[max(1, min(top, 1 + round((value - low) * scale)))] if math.isfinite(value) else " "
        for value in shown
    )
    return text.rjust(width)


def tower(values: Sequence[int], width: int, height: int, glyphs: Glyphs) -> list[str]:
    """A histogram: its rows from the top, each exactly ``width`` cells; every count but 0 leaves a trace."""
    bins = rebinned(values, width)
    most, top = max(bins, default=0.0), len(glyphs.levels) - 1
    scale = top * height / most if most else 0.0
    levels = [max(1, round(value * scale)) if value > 1e-9 * most else 0 for value in bins]
    return [
        "".join(glyphs.levels[min(top, max(0, level - row * top))] for level in levels)
        for row in range(height - 1, -1, -1)
    ]


def rebinned(values: Sequence[int], width: int) -> list[float]:
    """Counts of other bins of equal width, as if each count were spread evenly over its bin."""
    if not len(values) or width <= 0:
        return [0.0] * max(0, width)
    below = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    edges = np.linspace(0, len(values), width + 1)
    spread: list[float] = np.diff(np.interp(edges, np.arange(len(below)), below)).tolist()
    return spread


def rule(title: str, width: int, glyphs: Glyphs, note: str = "") -> Line:
    """A line across with a title at its left and a note at its right."""
    title = clip(title, max(0, width - 4), glyphs.ellipsis)
    room = width - width_of(title) - 3
    note = f" {note} " if note and width_of(note) + 4 <= room else ""
    line = glyphs.line * max(0, room - width_of(note) - bool(note))
    return (
        Span(glyphs.line + " " if width > 2 else "", "rule"),
        Span(title, "title"),
        Span(" " + line if width > 2 else "", "rule"),
        Span(note, "label"),
        Span(glyphs.line if note else "", "rule"),
    )


def remark(text: str) -> Line:
    """A line in place of numbers that are not known."""
    return (Span(f"  {text}", "label"),)


def size_of(line: Iterable[Span]) -> int:
    """Cells of a line."""
    return sum(width_of(text) for text, _ in line)


def padded(line: Line, width: int) -> Line:
    """A line of exactly this width."""
    missing = width - size_of(line)
    if missing < 0:
        return cropped(line, width)
    return (*line, Span(" " * missing)) if missing else line


def cropped(line: Line, width: int) -> Line:
    """A line cut to a width."""
    if size_of(line) <= width:
        return line
    kept: list[Span] = []
    for text, style in line:
        size = width_of(text)
        if size > width:
            kept.append(Span(clip(text, width, ""), style))
            break
        if text:
            kept.append(Span(text, style))
        width -= size
    return tuple(kept)


def beside(blocks: Sequence[tuple[list[Line], int]], height: int, glyphs: Glyphs) -> list[Line]:
    """Blocks, each with its width, side by side with a line between them."""
    lines: list[Line] = []
    for row in range(height):
        whole: list[Span] = []
        for place, (block, width) in enumerate(blocks):
            if place:
                whole.append(Span(glyphs.side, "rule"))
            whole.extend(padded(block[row] if row < len(block) else (), width))
        lines.append(tuple(whole))
    return lines


def right(line: Line, end: Line, width: int) -> Line:
    """A line with something at its right edge; the end is left out where there is no room."""
    missing = width - size_of(line) - size_of(end)
    return (*line, Span(" " * missing), *end) if missing > 0 else line


def joined(parts: Iterable[Line], width: int, gap: str = "  ") -> Line:
    """As many parts as fit, one after the other."""
    line: list[Span] = []
    room = width
    for part in parts:
        size = size_of(part) + (len(gap) if line else 0)
        if size > room or not part:
            continue
        if line:
            line.append(Span(gap))
        line.extend(part)
        room -= size
    return tuple(line)


def labelled(label: str, value: str, style: str = "value") -> Line:
    """A label and its value."""
    return Span(label + " ", "label"), Span(value, style)


def extremes(points: Iterable[tuple[int, float]]) -> str:
    """The lowest and the highest of some values, which stand behind their steps."""
    values = [value for _, value in points]
    return f"({number(min(values))} .. {number(max(values))})"


def short(value: float, width: int) -> str:
    """A number at the right of a cell of this width, as a power of ten where it must.

    >>> short(0.5, 6), short(0.000361, 7)
    ('   0.5', ' 3.6e-4')
    """
    text = number(value)
    if len(text) > width and math.isfinite(value):
        mantissa, exponent = f"{value:.{max(0, width - 6)}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.rjust(width)


def aligned(values: Sequence[float], width: int) -> list[str]:
    """Numbers of one column with their decimal points aligned, where one number of decimals suits all.

    >>> aligned([0.0211, 0.3319, 4.641], 7), aligned([2e-6, 4e-6], 7)
    ([' 0.0211', ' 0.3319', ' 4.6410'], ['  2e-06', '  4e-06'])
    """
    known = [abs(value) for value in values if math.isfinite(value)]
    most, least = max(known, default=0.0), min((value for value in known if value), default=0.0)
    decimals = 4 if most < 10 else 3 if most < 100 else 2 if most < 1000 else 1
    if most >= 1e5 or (most and most < 0.01) or len(f"{most:.{decimals}f}") >= width:
        return [short(value, width) for value in values]
    small = 0.5 * 10.0**-decimals
    if least >= small:
        return [f"{value:{width}.{decimals}f}" if math.isfinite(value) else short(value, width) for value in values]
    return [short(value, width) if 0 < abs(value) < small else f"{value:{width}.{decimals}f}" for value in values]
