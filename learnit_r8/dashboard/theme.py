"""Themes: the colours and characters of the screen, chosen from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Style:
    """Colour and attributes of a span; a meaning is never in the style alone.

    Attributes:
        colour: Of the text, in a palette of 256; None for the terminal's own.
        colour8: Of the text, where there are 8 colours (0 black, 1 red, 2 green, 3 yellow, 4 blue, 5 magenta, 6 cyan,
            7 white); None for the terminal's own.
        bold, dim, reverse: Attributes.
    """

    colour: int | None = None
    colour8: int | None = None
    bold: bool = False
    dim: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class Glyphs:
    """The characters of charts and bars.

    Attributes:
        name: "braille", "blocks" or "ascii".
        bar: Eighths of a cell from left to right, the last one full.
        rest: The empty part of a bar.
        levels: Heights of a cell, from empty to full.
        line, corner, side: Parts of frames and axes.
        up, dot: Mark of a clipped value, mark of the state.
        tick: Mark of a checkpoint on an axis.
        ellipsis: Ends a text that was cut off.
        cell: Rows and columns of dots in a cell of a chart.
        marks: A character for each set of dots, counted as bits, row by row.
        haze: A cell of the haze behind a curve; "" where it is made of dots.
    """

    name: str
    bar: str
    rest: str
    levels: str
    line: str
    corner: str
    side: str
    up: str
    dot: str
    tick: str
    ellipsis: str
    cell: tuple[int, int]
    marks: str
    haze: str


_BITS = (0, 3, 1, 4, 2, 5, 6, 7)
"""The bit of each dot in the code of a braille character, row by row."""
_DOTS = [sum(1 << _BITS[dot] for dot in range(8) if dots >> dot & 1) for dots in range(256)]
BRAILLE = Glyphs(
    "braille", "▏▎▍▌▋▊▉█", "░", " ▁▂▃▄▅▆▇█", "─", "└", "│", "▲", "●", "╵", "…", (4, 2),
    " " + "".join(chr(0x2800 + dots) for dots in _DOTS[1:]), "",
)  # fmt: skip
BLOCKS = replace(BRAILLE, name="blocks", cell=(2, 1), marks=" ▀▄█", haze="░")
ASCII = Glyphs("ascii", "#", "-", " .:-=+*#", "-", "+", "|", "^", "*", "'", ".", (1, 1), " *", ":")

COLOURS = {
    "": Style(), "value": Style(bold=True), "selected": Style(None, None, reverse=True),
    "title": Style(75, 6, bold=True), "key": Style(75, 6, bold=True), "rule": Style(245), "label": Style(247),
    "good": Style(78, 2, bold=True), "busy": Style(75, 6, bold=True),
    "warn": Style(214, 3, bold=True), "alert": Style(203, 1, bold=True),
    "bar": Style(75, 6), "rest": Style(243, None, dim=True), "plan": Style(244, None, dim=True),
    "loss": Style(75, 6), "range": Style(67, 6, dim=True), "metric": Style(78, 2), "lr": Style(180, 3),
    "q1": Style(78, 2), "q2": Style(79, 6), "q3": Style(222, 3), "q4": Style(209, 1, bold=True),
}  # fmt: skip
"""Every style, by name."""

_LIGHT = {
    "title": Style(25, 4, bold=True), "key": Style(25, 4, bold=True), "rule": Style(241), "label": Style(240),
    "good": Style(22, bold=True), "busy": Style(25, 4, bold=True),
    # Bold red and magenta are bright ones in many terminals, too bright for this ground.
    "warn": Style(94, 5), "alert": Style(124, 1),
    "bar": Style(25, 4), "rest": Style(244, None, dim=True), "plan": Style(244, None, dim=True),
    "loss": Style(25, 4), "range": Style(67, 4, dim=True), "metric": Style(22), "lr": Style(94, 5),
    "q1": Style(22), "q2": Style(24, 4), "q3": Style(94, 5), "q4": Style(124, 1),
}  # fmt: skip
"""Changes for a light ground."""

_PALETTES = {
    "dark": COLOURS,
    "light": COLOURS | _LIGHT,
    "none": {name: replace(style, colour=None, colour8=None) for name, style in COLOURS.items()}
    | {"alert": Style(bold=True, reverse=True)},
}

NAMES = tuple(_PALETTES)
"""Names of the themes, in the order of the key that changes them."""


@dataclass(frozen=True)
class Theme:
    """Colours and characters of a screen.

    Attributes:
        name: "dark" or "light", for a ground of that kind, or "none".
        glyphs: The characters.
        num_colours: 256, 8 or 0.
        styles: Name -> style, for every span.
    """

    name: str = "none"
    glyphs: Glyphs = BRAILLE
    num_colours: int = 0
    styles: Mapping[str, Style] = field(default_factory=lambda: _PALETTES["none"], repr=False, compare=False)

    def next(self) -> Theme:
        """The theme after this one; only "none" where there are no colours."""
        if not self.num_colours:
            return self
        return _named(NAMES[(NAMES.index(self.name) + 1) % len(NAMES)], self.glyphs, self.num_colours)


def _named(name: str, glyphs: Glyphs, num_colours: int) -> Theme:
    styles = _PALETTES[name]
    if num_colours == 256:
        # The greys of 256 colours are dim already; dimmed once more they are unreadable on many terminals.
        styles = {key: replace(style, dim=style.dim and style.colour is None) for key, style in styles.items()}
    return Theme(name, glyphs, num_colours, styles)


def choose_theme(environ: Mapping[str, str] = os.environ, *, encoding: str = "utf-8", ground: str = "") -> Theme:
    """The theme that fits a terminal.

    No colours with ``NO_COLOR`` set, or with ``TERM`` unset, "dumb" or monochrome;
    ``FORCE_COLOR`` (1 to 3, "true") overrides that. ``COLORTERM`` or "256color" in ``TERM`` mean 256 colours,
    8 otherwise. Braille needs UTF-8 and a font that has it: the Linux console gets blocks, other encodings ASCII.
    ``R8_GLYPHS`` ("braille", "blocks", "ascii") and ``R8_THEME`` (the name of a `Theme`) force a choice;
    else the ground decides between light and dark, as the terminal or ``COLORFGBG`` tells it.

    Args:
        environ: By default that of the process.
        encoding: Of the terminal, as `locale.getencoding` says.
        ground: "dark" or "light", as the terminal says; "" if it does not.

    Raises:
        ValueError: an unknown name is forced.
    """
    num_colours = _num_colours(environ)
    usual = "light" if (ground or ground_of(environ)) == "light" else "dark"
    name = environ.get("R8_THEME") or (usual if num_colours else "none")
    if name not in _PALETTES:
        raise ValueError(f"theme must be one of {NAMES}, got {name!r}.")
    kinds = {"braille": BRAILLE, "blocks": BLOCKS, "ascii": ASCII}
    is_unicode = encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf16", "utf16le")
    usual = ("blocks" if environ.get("TERM") == "linux" else "braille") if is_unicode else "ascii"
    chosen = environ.get("R8_GLYPHS") or usual
    if chosen not in kinds:
        raise ValueError(f"glyphs must be one of {tuple(kinds)}, got {chosen!r}.")
    return _named(name if num_colours else "none", kinds[chosen], num_colours)


def ground_of(environ: Mapping[str, str]) -> str:
    """The ground that ``COLORFGBG`` tells: "dark", "light" or "".

    >>> ground_of({"COLORFGBG": "0;15"}), ground_of({"COLORFGBG": "15;default;0"}), ground_of({})
    ('light', 'dark', '')
    """
    last = environ.get("COLORFGBG", "").rpartition(";")[2]
    if not (last.isascii() and last.isdigit()):
        return ""
    return "light" if int(last) == 7 or 9 <= int(last) <= 15 else "dark"


def _num_colours(environ: Mapping[str, str]) -> int:
    term = environ.get("TERM", "")
    forced = environ.get("FORCE_COLOR", "")
    many = bool(environ.get("COLORTERM")) or "256" in term or "direct" in term or bool(environ.get("WT_SESSION"))
    if forced not in ("", "0", "false"):
        return 256 if many or forced in ("2", "3") else 8
    if environ.get("NO_COLOR") or forced in ("0", "false"):
        return 0
    if term in ("", "dumb", "unknown") or term.endswith("-m") or term.startswith(("vt1", "vt2")):
        return 256 if environ.get("WT_SESSION") else 0
    return 256 if many else 8
