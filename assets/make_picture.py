"""Draws the pictures of the screen: ``python assets/make_picture.py``. They are what a terminal shows of example.py.

The example runs in a pseudo-terminal of 120 x 40 cells; keys are pressed, and the screen is read back as a terminal
would draw it (with pyte) and written as SVG, with dots and blocks as shapes, so that no font can bend them.
"""

from __future__ import annotations

import html
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from itertools import groupby
from pathlib import Path
from typing import Any

import pyte

HERE = Path(__file__).resolve().parent
COLUMNS, ROWS = 120, 40
CELL, LINE, PAD = 8.0, 17.0, 16.0
SEAM = 0.7
"""What is left free above and below a block, so that two bars in a row are two."""
PAPER, INK, RULE = "#14171c", "#d7dce4", "#2b313b"
NAMED = {
    "black": "#3b4252", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "yellow": "#e5c07b",
    "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": INK, "default": INK,
}  # fmt: skip
LEFT, LOWER = "▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇"
BRAILLE = range(0x2800, 0x2900)
DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))
"""Column and row of the dot that each bit of a Braille character stands for."""
SHOTS = (("run", "1", "found:", 60.0), ("data", "2", "", 3.5), ("samples", "3", "", 1.5))
"""File, key, text to wait for, and seconds to wait at most."""


class Terminal:
    """A program in a pseudo-terminal, and what it shows."""

    def __init__(self, arguments: list[str]) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        child, self._master = pty.fork()
        if child == 0:
            environ = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
            environ |= {"PYTHONPATH": str(HERE.parent), "R8_UI": "screen", "R8_RUNS": os.environ["SCRATCH"]}
            os.execve(sys.executable, [sys.executable, *arguments], environ)
        ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def read(self, seconds: float, until: str = "") -> None:
        """Take in what is shown for so long, or until it shows this text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and any(until in line for line in self.screen.display)):
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self._stream.feed(os.read(self._master, 65536))
                except OSError:
                    return


def svg(screen: pyte.Screen) -> str:
    """The screen as a picture."""
    width, height = COLUMNS * CELL + 2 * PAD, ROWS * LINE + 2 * PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13.2">',
        "<title>The screen of a training run</title>",
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="10" fill="{PAPER}" stroke="{RULE}"/>',
    ]
    for row in range(ROWS):
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]
        for look, group in groupby(enumerate(cells), key=lambda pair: look_of(pair[1])):
            parts += run_of([(column, cell.data) for column, cell in group], row, look)
    return "\n".join([*parts, "</svg>\n"])


def look_of(cell: Any) -> tuple[str, str, bool]:
    """Ink, paper ("" for none of its own) and weight of a cell."""
    ink, paper = (NAMED.get(colour, f"#{colour}") for colour in (cell.fg, cell.bg))
    if cell.bg == "default":
        paper = ""
    return (PAPER, ink, cell.bold) if cell.reverse else (ink, paper, cell.bold)


def run_of(cells: list[tuple[int, str]], row: int, look: tuple[str, str, bool]) -> Iterator[str]:
    """Cells of one look: shapes and texts."""
    ink, paper, is_bold = look
    top = PAD + row * LINE
    if paper:
        left, wide = PAD + cells[0][0] * CELL, len(cells) * CELL
        yield f'<rect x="{left:g}" y="{top:g}" width="{wide:g}" height="{LINE:g}" fill="{paper}"/>'
    shapes = "".join(shape_of(data, PAD + column * CELL, top) for column, data in cells)
    if shapes:
        yield f'<path d="{shapes}" fill="{ink}"/>'
    for is_text, group in groupby(cells, key=lambda cell: bool(cell[1].strip()) and not shape_of(cell[1], 0, 0)):
        if is_text:
            placed = list(group)
            text = html.escape("".join(data for _, data in placed))
            weight = ' font-weight="600"' if is_bold else ""
            yield (
                f'<text x="{PAD + placed[0][0] * CELL:g}" y="{top + 13:g}" fill="{ink}"{weight} '
                f'textLength="{len(placed) * CELL:g}" lengthAdjust="spacingAndGlyphs">{text}</text>'
            )


def box(left: float, top: float, width: float, height: float) -> str:
    """A rectangle in the language of paths."""
    return f"M{left:.2f} {top:.2f}h{width:.2f}v{height:.2f}h{-width:.2f}z"


def shape_of(data: str, left: float, top: float) -> str:
    """A Braille character, block or line as a path; "" for any other."""
    if len(data) != 1 or data == " ":
        return ""
    if ord(data) in BRAILLE:
        bits = ord(data) - BRAILLE.start
        dots = [DOTS[bit] for bit in range(8) if bits >> bit & 1]
        return "".join(box(left + 1.2 + 4 * x, top + 1.2 + y * LINE / 4, 2.2, 2.2) for x, y in dots)
    if data in LEFT:
        return box(left, top + SEAM, CELL * (LEFT.index(data) + 1) / 8 + 0.05, LINE - 2 * SEAM)
    if data in LOWER:
        tall = (LINE - 2 * SEAM) * (LOWER.index(data) + 1) / 8
        return box(left, top + LINE - SEAM - tall, CELL + 0.05, tall)
    if data == "░":
        return box(left, top + SEAM, CELL + 0.05, LINE - 2 * SEAM)
    if data == "─":
        return box(left, top + LINE / 2, CELL + 0.05, 1)
    if data == "│":
        return box(left + CELL / 2, top, 1, LINE)
    return ""


def main() -> None:
    terminal = Terminal([str(HERE.parent / "example.py"), "--screen"])
    terminal.read(60, until="RECOVERING")
    for name, key, until, seconds in SHOTS:
        terminal.press(key)
        terminal.read(seconds, until=until)
        terminal.read(1.0)
        # The emulator does not scroll as a terminal does: a whole repaint leaves nothing of that.
        terminal.press("r")
        terminal.read(0.3)
        (HERE / f"{name}.svg").write_text(svg(terminal.screen), encoding="utf-8")
        print(f"assets/{name}.svg")
    terminal.press("qs")
    terminal.read(10, until="Test accuracy")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["SCRATCH"] = scratch
        main()
