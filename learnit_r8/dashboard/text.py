"""Text that is safe to show: no control sequences, and a known width in terminal cells; and names of metrics."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..events.text import number


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
    if text.isascii():
        return text
    like = ""
    for character in text:
        if character.isascii() or character in _LIKE:
            like += _LIKE.get(character, character)
            continue
        base, size = unicodedata.normalize("NFKD", character)[:1], cell_width(character)
        like += (base if base.isascii() and base.isprintable() else "?").ljust(size, "?")[:size]
    return like


_LIKE = {"±": "~", "…": ".", "▲": "^", "●": "*", "→": ">"}


def clip(text: str, width: int, ellipsis: str = "…") -> str:
    """The start of a cleaned text that fits, with an ellipsis if the text is longer.

    >>> clip("abcdef", 4), clip("猫猫猫", 4)
    ('abc…', '猫…')
    """
    if len(text) <= width and (text.isascii() or width_of(text) <= width):
        return text
    room = width - len(ellipsis)
    if room < 0:
        return ""
    if text.isascii():
        return text[:room] + ellipsis
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


def setting(text: str) -> str:
    """The value of a setting for readers who do not know Python.

    >>> setting("False"), setting("Recovery(factor=0.5, gentle_steps=16)")
    ('no', 'Recovery: factor 0.5; gentle steps 16')
    """
    if text in _WORDS:
        return _WORDS[text]
    if (made := re.fullmatch(r"(\w+)\((\w+=.*)\)", text)) is None:
        return text
    fields = [(name, value.rstrip(", ")) for name, value in re.findall(r"(\w+)=(.*?)(?=, \w+=|$)", made[2])]
    shown = [f"{name.replace('_', ' ')} {_WORDS.get(value, value).strip('()')}" for name, value in fields]
    return f"{made[1]}: {'; '.join(shown)}"


_WORDS = {"True": "yes", "False": "no", "None": "none", "": "-"}


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
