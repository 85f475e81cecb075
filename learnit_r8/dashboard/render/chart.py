"""Charts in braille, half blocks or ASCII: the mean as a line, the range from lowest to highest as a haze."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..state.curve import Columns
from ..text import Line, Span
from ..theme import Glyphs

STEPS = (1, 2, 5)


def round_ticks(low: float, high: float, most: int, *, is_log: bool = False) -> list[float]:
    """Round values from low to high: as many as there are room for, in steps of 1, 2 or 5 times a power of ten.

    On a log scale they are 1, 2 and 5 times powers of ten, or the powers alone, where at least two of them fit.

    >>> round_ticks(0.48, 2.77, 5), round_ticks(0.0003, 0.2, 4, is_log=True)
    ([0.5, 1.0, 1.5, 2.0, 2.5], [0.001, 0.01, 0.1])
    """
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return []
    if is_log and low > 0:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in (STEPS, (1,)):
            ticks = [factor * 10.0**power for power in powers for factor in factors]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if 2 <= len(ticks) <= most:
                return ticks
        if len(ticks) > most:
            return ticks[:: math.ceil(len(ticks) / most)]
    power = math.floor(math.log10((high - low) / most)) - 1
    finer: list[float] = []
    for step in (factor * 10.0**each for each in range(power, power + 4) for factor in STEPS):
        # A value that is a hair beyond an end counts as within.
        first, last = math.ceil(low / step - 1e-3), math.floor(high / step + 1e-3)
        ticks = [float(f"{place * step:.12g}") for place in range(first, min(last, first + most + 2) + 1)]
        if len(ticks) <= most:
            # One alone is no scale.
            return ticks if len(ticks) > 1 or len(finer) > most + 1 else finer
        finer = ticks
    return finer


def tick_texts(values: list[float]) -> list[str]:
    """Texts of round values, all in one notation and with as many digits as they need.

    >>> tick_texts([0.0, 0.5, 1.0]), tick_texts([0.0, 2e-5, 4e-5]), tick_texts([0.01, 0.1, 1.0])
    (['0.0', '0.5', '1.0'], ['0', '2e-5', '4e-5'], ['0.01', '0.10', '1.00'])
    """
    known = [abs(value) for value in values if value]
    if not known:
        return ["0"] * len(values)
    decimals = max(len(f"{value:.10f}".rstrip("0").partition(".")[2]) for value in known)
    if decimals <= 4 and max(known) < 1e5 and min(known) >= 1e-4:
        return [f"{value:.{decimals}f}" for value in values]
    digits = max(len(f"{value:.10e}".partition("e")[0].rstrip("0").rstrip(".").replace(".", "")) for value in known) - 1
    texts = (f"{value:.{digits}e}".split("e") for value in values)
    return [f"{mantissa}e{int(exponent)}" if float(mantissa) else "0" for mantissa, exponent in texts]


LABEL = 8
"""Cells of the numbers at the left of a chart, and of its axis."""

LEAST_TICK = 16
"""Cells of an axis for each of its round steps."""

SAVED = "C"
"""The mark of a checkpoint."""

_LOCAL = 4
"""Columns on each side with which a spike is compared."""

Floats = NDArray[np.float64]
Kinds = NDArray[np.int64]


class Scale(NamedTuple):
    """The vertical scale of a chart.

    Attributes:
        bottom: Value at the lower edge.
        top: Value at the upper edge.
        is_log: Whether equal ratios are equal heights.
    """

    bottom: float
    top: float
    is_log: bool = False

    def heights(self, values: Floats) -> Floats:
        """Heights of values: 0 at the bottom, 1 at the top; NaN where unknown."""
        if self.is_log:
            values = np.log(np.maximum(values, self.bottom))
            low, high = math.log(self.bottom), math.log(self.top)
        else:
            low, high = self.bottom, self.top
        return (values - low) / (high - low)

    def labels(self, rows: int) -> list[str]:
        """A text for each row, the top one first: round values at their rows, else blank."""
        texts = [" " * (LABEL - 2)] * rows
        values: list[float] = []
        for most in range(max(2, (rows + 1) // 2), 0, -1):
            values = round_ticks(self.bottom, self.top, most, is_log=self.is_log)
            known = tick_texts(values)
            # With fewer of them, fewer digits may do, which a power of ten needs to fit.
            are_short = all(len(text) <= LABEL - 2 or "e" not in text for text in known)
            if are_short and len({self._row_of(value, rows) for value in values}) == len(values):
                break
        for value, text in zip(values, tick_texts(values), strict=True):
            # Far from zero and close together, as 1.00001 and 1.00002, they are too long.
            if len(text) <= LABEL - 2:
                texts[self._row_of(value, rows)] = text.rjust(LABEL - 2)
        return texts

    def _row_of(self, value: float, rows: int) -> int:
        height = float(self.heights(np.array([value]))[0])
        return min(rows - 1, max(0, round((1 - height) * (4 * rows - 1)) // 4))


def scale_of(columns: Columns, *, is_log: bool = False) -> Scale:
    """A scale for the curve without lone spikes, which would flatten the rest.

    A log scale needs values > 0; it is linear otherwise.
    """
    known = ~np.isnan(columns.mean)
    if not known.any():
        return Scale(0.0, 1.0)
    low, high = columns.low[known], columns.high[known]
    bottom, top = float(low.min()), float(high.max())
    # A maximum near the 95th percentile flattens nothing.
    few = np.partition(high, -1 - len(high) // 20)[-1 - len(high) // 20]
    if len(high) >= 2 * _LOCAL and top - bottom > 1.3 * (few - bottom):
        padded = np.pad(high, _LOCAL, mode="reflect")
        around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * _LOCAL + 1), axis=1)
        usual = high[high - bottom <= 2 * (around - bottom)]
        if len(usual) and top - bottom > 1.3 * (float(usual.max()) - bottom) > 0:
            top = float(usual.max())
    if is_log and bottom > 0:
        return Scale(bottom, top if top > bottom * 1.001 else bottom * 1.1, True)
    size = max(abs(top), abs(bottom))
    if top - bottom <= 1e-9 * size:
        room = 0.1 * size or 1.0
        return Scale(bottom - room / 2, bottom + room / 2)
    return Scale(bottom, top)


def scale_of_all(curves: Sequence[Floats], *, is_log: bool = False) -> Scale:
    """A scale for several curves."""
    low, high = np.fmin.reduce(curves), np.fmax.reduce(curves)
    return scale_of(Columns(low, low, high), is_log=is_log)


def plot(
    curves: Sequence[tuple[Floats, str]], height: int, glyphs: Glyphs, scale: Scale, *, haze: Columns | None = None
) -> list[Line]:
    """Draw curves, each in its style, behind LABEL cells of values; where they meet, the cell has the later style.

    Args:
        curves: Values and style of each; `dots` values for each cell.
        height: Rows, >= 1.
        glyphs: Characters.
        scale: The vertical scale.
        haze: The range behind the curves; columns beyond the top of the scale are marked.
    """
    kinds, text = _cells([values for values, _ in curves], height, scale, glyphs, haze)
    styles = ("" if haze is None else "range", *(style for _, style in curves), "alert")
    if haze is not None:
        beyond = np.nan_to_num(haze.high, nan=-np.inf) > scale.top + 1e-9 * abs(scale.top)
        over: NDArray[np.bool_] = np.logical_or.reduce(beyond.reshape(-1, dots(glyphs)), axis=1)
        kinds[0, over] = len(styles) - 1
        text[0] = "".join(glyphs.up if hit else old for hit, old in zip(over, text[0], strict=True))
    lines: list[Line] = []
    changes, numbers = kinds[:, 1:] != kinds[:, :-1], kinds.tolist()
    for row, label in enumerate(scale.labels(height)):
        cuts = [0, *(np.flatnonzero(changes[row]) + 1).tolist(), len(text[row])]
        parts = [Span(text[row][a:b], styles[numbers[row][a]]) for a, b in itertools.pairwise(cuts)]
        lines.append((Span(label + " ", "label"), Span(glyphs.side, "rule"), *parts))
    return lines


def dots(glyphs: Glyphs) -> int:
    """Number of columns in a cell."""
    return glyphs.cell[1]


def _levels(values: Floats, scale: Scale, size: int) -> Kinds:
    """Row of each value, counted from the top; ``size`` where it is unknown."""
    height = np.clip(scale.heights(values), 0, 1)
    return np.where(np.isnan(height), size, np.rint((1 - np.nan_to_num(height)) * (size - 1))).astype(np.int64)


def _cells(
    curves: list[Floats], height: int, scale: Scale, glyphs: Glyphs, haze: Columns | None
) -> tuple[Kinds, list[str]]:
    """Which curve goes through each cell (0: none), and the characters."""
    tall, wide = glyphs.cell
    size, rows = tall * height, np.arange(tall * height)[:, None]
    shape, fog = (height, tall, -1, wide), np.zeros((size, len(curves[0])), bool)
    if haze is not None:
        high, low = _levels(haze.high, scale, size), _levels(haze.low, scale, size)
        fog = (rows >= high) & (rows <= low) & (high < size)
    # A haze without a character of its own is of every second dot.
    dotted = np.zeros_like(fog) if glyphs.haze else fog & ((rows + np.arange(fog.shape[1])) % 2 == 0)
    kinds = np.zeros((height, len(curves[0]) // wide), np.int64)
    for number, values in enumerate(curves, start=1):
        levels = _levels(values, scale, size)
        before = np.concatenate([levels[:1], levels[:-1]])
        before = np.where(before == size, levels, before)
        # Without gaps: each column reaches to the one before.
        line = (rows >= np.minimum(levels, before + 1)) & (rows <= np.maximum(levels, before - 1)) & (levels < size)
        kinds[line.reshape(shape).any(axis=(1, 3))] = number
        dotted |= line
    places = dotted.reshape(shape).transpose(0, 2, 1, 3).reshape(height, -1, tall * wide)
    text = np.array(list(glyphs.marks))[np.packbits(places, axis=2, bitorder="little")[:, :, 0]]
    if glyphs.haze:
        text[fog.reshape(shape).any(axis=(1, 3)) & (text == " ")] = glyphs.haze
    return kinds, [row.tobytes().decode("utf-32-le") for row in text.astype("<U1")]


def axis(
    width: int, first: int, last: int, glyphs: Glyphs, marks: Sequence[tuple[int, str]], ends: tuple[str, str]
) -> Line:
    """The horizontal axis from one step to another, with letters at the steps of events and a text at each end."""

    def place(step: float) -> int:
        return min(width - 1, int((step - first) * width // max(1, last - first)))

    shown = [(place(step), letter) for step, letter in marks if first <= step <= last and width]
    letters = {at: letter for at, letter in shown if letter != SAVED}
    cells = [letters.get(at, glyphs.line) for at in range(width)]
    begin, end = ends
    if len(begin) + len(end) + 2 < width:
        for left, text in ((0, begin), (width - len(end), end)):
            # The mark of a refusal or a restore matters more than a number.
            if not {"S", "B"} & set(cells[left : left + len(text)]):
                cells[left : left + len(text)] = text
        # Round steps between the ends, centred where they are, unless something is there.
        rounds = round_ticks(first, last, max(2, width // LEAST_TICK)) if begin == f"{first:,}" else []
        for value in rounds:
            label = f" {value:,.0f} "
            left = place(value) - len(label) // 2
            room = cells[max(0, left - 1) : left + len(label) + 1]
            if value == int(value) and room == [glyphs.line] * (len(label) + 2):
                cells[left : left + len(label)] = label
    # A checkpoint comes every epoch: a grey tick, which leaves the numbers alone.
    for at, letter in shown:
        if letter == SAVED and cells[at] == glyphs.line:
            cells[at] = glyphs.tick
    spans = [Span(" " * (LABEL - 1) + glyphs.corner, "rule")]
    for letter, group in itertools.groupby(enumerate(cells), lambda cell: letters.get(cell[0]) == cell[1] and cell[1]):
        style = "alert" if letter in ("S", "B") else "key" if letter else "rule"
        spans.append(Span("".join(character for _, character in group), style))
    return tuple(spans)
