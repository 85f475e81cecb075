"""Text that is safe to show: cells, lines and their parts (bars, rules, sparklines), tables, and names of metrics."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..events.text import number
from .theme import Glyphs


class Span(NamedTuple):
    """A piece of a line.

    Attributes:
        text: Printable characters only.
        style: A name of a style, see `theme.Theme`.
    """

    text: str
    style: str = ""


Line = tuple[Span, ...]
"""One row of the screen, left to right."""


@functools.lru_cache(4096)
def cell_width(character: str) -> int:
    """Cells one printable character takes: 0, 1 or 2."""
    if unicodedata.combining(character) or unicodedata.category(character)[0] == "M":
        return 0
    # Jamo that join the syllable before them.
    if "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


@functools.lru_cache(8192)
def width_of(text: str) -> int:
    """Cells a cleaned text takes.

    >>> width_of("abc"), width_of("猫"), width_of("e\\u0301")
    (3, 2, 1)
    """
    return len(text) if text.isascii() else sum(map(cell_width, text))


@functools.lru_cache(4096)
def in_ascii(text: str) -> str:
    """A cleaned text in ASCII, as wide as before: letters without accents, "?" where ASCII has nothing similar.

    >>> in_ascii("±2 café 猫…")
    '~2 cafe ??.'
    """
    # An accent of its own has no width.
    apart = unicodedata.normalize("NFD", text)
    return "".join(each if each.isascii() else _LIKE.get(each, "?" * cell_width(each)) for each in apart)


_LIKE = {"±": "~", "…": ".", "▲": "^", "●": "*", "→": ">"}


def clip(text: str, width: int, ellipsis: str = "…") -> str:
    """The start of a cleaned text that fits, with an ellipsis if the text is longer.

    >>> clip("abcdef", 4), clip("猫猫猫", 4)
    ('abc…', '猫…')
    """
    if width_of(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 0:
        return ""
    taken = 0
    for position, character in enumerate(text):
        taken += cell_width(character)
        if taken > room:
            return text[:position] + ellipsis
    return text


def wrapped(text: str, width: int) -> list[str]:
    """A cleaned text as lines that fit, broken between words where it can be; at least one line.

    >>> wrapped("model restored from backup", 15), wrapped("", 5)
    (['model restored', 'from backup'], [''])
    """
    lines: list[str] = []
    while width_of(text) > width:
        part = clip(text, width, "") or text[:1]
        cut = part.rfind(" ") if text[len(part)] != " " else len(part)
        cut = cut if cut > 0 else len(part)
        lines.append(text[:cut])
        text = text[cut:].lstrip(" ")
    return [*lines, text] if text or not lines else lines


def fit(text: str, width: int, ellipsis: str = "…") -> str:
    """A cleaned text made exactly so wide: clipped, or filled up with spaces.

    >>> fit("ab", 4), fit("猫猫", 3)
    ('ab  ', '猫…')
    """
    text = clip(text, width, ellipsis)
    return text + " " * (width - width_of(text))


def figure(value: float) -> str:
    """A figure of a comparison: counts whole, other numbers in four digits; "-" if there is none.

    >>> figure(123456.0), figure(0.41831), figure(27525.4), figure(math.nan)
    ('123,456', '0.4183', '27,525', '-')
    """
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) < 1e12 and value == int(value) else number(value)


TRAINING = frozenset(("train", "training"))
HELD_OUT = frozenset(("val", "valid", "validation", "eval", "test", "dev"))

_WORD = re.compile(r"[/_.\- ]+")


def stem_of(name: str) -> str:
    """The name without the words that say which data it was measured on.

    >>> stem_of("val_loss"), stem_of("train/loss"), stem_of("test")
    ('loss', 'loss', 'test')
    """
    words = [word for word in _WORD.split(name) if word.lower() not in TRAINING | HELD_OUT]
    return "_".join(words) if words else name


def is_held_out(name: str) -> bool:
    """Whether it was measured on data that was not trained on."""
    return any(word in HELD_OUT for word in _WORD.split(name.lower()))


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Metrics that belong over each other, by their stem: those of the training first.

    >>> grouped(["val_loss", "accuracy", "train_loss"])
    {'loss': ['train_loss', 'val_loss'], 'accuracy': ['accuracy']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(stem_of(name), []).append(name)
    return {stem: sorted(members, key=is_held_out) for stem, members in groups.items()}


WIDEST = 60
"""Cells of the widest column; longer texts are clipped."""


def table_lines(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), widest: int = WIDEST) -> Iterator[str]:
    """Rows of cleaned texts, equally many each, as lines.

    Args:
        rows: The texts.
        right: Places of the columns that end at the same place, such as numbers; the others begin at the same place.
        widest: Most cells of a column.

    >>> list(table_lines([("name", "loss"), ("cat.png", "0.5")], right=[1]))
    ['name     loss', 'cat.png   0.5']
    """
    widths = [min(widest, max(map(width_of, column))) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            " " * (width - width_of(text)) + clip(text, width) if place in right else fit(text, width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


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
    levels = (1 + round((value - low) * scale) if math.isfinite(value) else None for value in shown)
    text = "".join(" " if level is None else glyphs.levels[max(1, min(top, level))] for level in levels)
    return text.rjust(width)


def tower(values: Sequence[int], width: int, height: int, glyphs: Glyphs) -> list[str]:
    """A histogram, at least one count: its rows from the top, each ``width`` >= 1 cells; all but 0 leave a trace."""
    # Bins of other widths, as if each count were spread evenly over its bin.
    below = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    edges = np.linspace(0, len(values), width + 1)
    bins: list[float] = np.diff(np.interp(edges, np.arange(len(below)), below)).tolist()
    most, top = max(bins), len(glyphs.levels) - 1
    scale = top * height / most if most else 0.0
    levels = [max(1, round(value * scale)) if value > 1e-9 * most else 0 for value in bins]
    return [
        "".join(glyphs.levels[min(top, max(0, level - row * top))] for level in levels)
        for row in range(height - 1, -1, -1)
    ]


def rule(title: str, width: int, glyphs: Glyphs, note: str = "") -> Line:
    """A line across with a title at its left and a note at its right."""
    title = clip(title, max(0, width - 4), glyphs.ellipsis)
    room = width - width_of(title) - 3
    note = f" {note} " if note and width_of(note) + 4 <= room else ""
    line = glyphs.line * max(0, room - width_of(note) - bool(note))
    before, after = (glyphs.line + " ", " " + line) if width > 2 else ("", "")
    end = Span(note, "label"), Span(glyphs.line if note else "", "rule")
    return (Span(before, "rule"), Span(title, "title"), Span(after, "rule"), *end)


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
