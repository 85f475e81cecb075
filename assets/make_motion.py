"""Draws the screen in motion: ``python assets/make_motion.py [RUN]``. It is what `learnit-r8 replay` shows of a run.

Without RUN, example.py is recorded first, in a pseudo-terminal. The file is one SVG without a script: each row of the
screen is in it once for as long as it stays the same, and style sheets show and hide it. It loads nothing, and stands
still at its last picture where the reader wants less motion.
"""

from __future__ import annotations

import html
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.state.ui_state import Scene, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.text import Line, width_of
from learnit_r8.dashboard.theme import Style, choose_theme
from learnit_r8.journal.run import Run, find_run

HERE = Path(__file__).resolve().parent
COLUMNS, ROWS = 104, 32
CELL, LINE, PAD = 8, 16, 14
NUM_FRAMES, SECONDS_A_FRAME, SECONDS_AT_END = 14, 0.9, 4.0
INCIDENT_FRAMES = 2
"""Frames for which the incident is held."""
BRAILLE = 0x2800
DOTS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))
"""Column and row of the dot that each bit of a Braille character stands for."""
LEFT, LOWER = "▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇"
THEME = choose_theme({**os.environ, "R8_THEME": "dark"})
PAPER, INK, FAINT = "#16181d", "#d8dee9", "#7b8394"
LEVELS = (0, 95, 135, 175, 215, 255)
"""Parts of the colours of a terminal's palette of 256."""


def motion_of(folder: Path) -> str:
    """The screen of a run in motion, as SVG."""
    frames = [rows_of(lines) for lines in pictures_of(folder)]
    total = len(frames) * SECONDS_A_FRAME + SECONDS_AT_END
    moments = [100 * place * SECONDS_A_FRAME / total for place in range(len(frames))] + [100.0]
    width, height = COLUMNS * CELL + 2 * PAD, ROWS * LINE + 2 * PAD
    parts, spans = [], dict[tuple[int, int], str]()
    for row in range(ROWS):
        for content, group in groupby(range(len(frames)), key=lambda place: frames[place][row]):
            places = list(group)
            if content:
                span = places[0], places[-1] + 1
                name = spans.setdefault(span, f"t{len(spans)}")
                last = " last" if span[1] == len(frames) else ""
                parts.append(f'<g class="{name}{last}" transform="translate({PAD} {PAD + row * LINE})">{content}</g>')
    colours = sorted(set(re.findall(r'class="[a-z]*(c[0-9a-f]{6})', "".join(parts))))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13">',
            "<title>The screen of a training: a NaN, the model put back, and mislabelled samples found</title>",
            f"<style>{_style(spans, moments, total, colours)}</style>",
            f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def pictures_of(folder: Path) -> Iterator[Sequence[Line]]:
    """The screens at equal distances of training time, and longer at an incident."""
    records = [record.event for record in Run(folder).records()]
    seconds = max(event.seconds for event in records)
    due = [seconds * (place + 1) / NUM_FRAMES for place in range(NUM_FRAMES)]
    view, has_paused = View(), False
    for event in records:
        while due and event.seconds > due[0]:
            due.pop(0)
            yield _picture(view)
        view.fold(event)
        if view.incident is not None and not has_paused:
            has_paused = True
            yield from [_picture(view)] * INCIDENT_FRAMES
    yield _picture(view)


def colour_of(style: Style) -> str:
    """The colour of a style's text on dark paper, as "#rrggbb"."""
    number = style.colour
    if number is None:
        return FAINT if style.dim else INK
    if number >= 232:
        return "#" + f"{8 + 10 * (number - 232):02x}" * 3
    number -= 16
    return "#" + "".join(f"{LEVELS[part]:02x}" for part in (number // 36, number // 6 % 6, number % 6))


def _picture(view: View) -> Sequence[Line]:
    return render(view, UiState(mode="watch"), COLUMNS, ROWS, THEME, Scene(now=view.seconds))


def rows_of(lines: Sequence[Line]) -> list[str]:
    """Each row as SVG, at the top."""
    drawn = ["".join(_row(line)) for line in lines][:ROWS]
    return drawn + [""] * (ROWS - len(drawn))


def _row(line: Line) -> Iterator[str]:
    column = 0
    dots, shapes = dict[str, str](), dict[str, str]()
    texts = []
    for text, name in line:
        style, wide = THEME.styles.get(name, Style()), width_of(text) * CELL
        ink = f"c{colour_of(style)[1:]}"
        if style.reverse:
            yield f'<path class="{ink}" d="M{column * CELL} 0h{wide}v{LINE}h-{wide}z"/>'
        written, at = "", column
        for letter, group in groupby(text):
            alike = "".join(group)
            if BRAILLE < ord(letter) < BRAILLE + 256:
                dots[ink] = dots.get(ink, "") + "".join(_dots(letter, at + place) for place in range(len(alike)))
                written += " " * len(alike)
            elif shape := _shape(letter, at * CELL, len(alike)):
                shapes[ink] = shapes.get(ink, "") + shape
                written += " " * len(alike)
            else:
                written += alike
            at += width_of(alike)
        for found in re.finditer(r"\S+(?: \S+)*", written):
            left = (column + width_of(written[: found.start()])) * CELL
            look = ("b" if style.bold else "") + (f"c{PAPER[1:]}" if style.reverse else ink)
            texts.append(
                f'<text class="{look}" x="{left}" y="12" textLength="{width_of(found[0]) * CELL}">'
                f"{html.escape(found[0])}</text>"
            )
        column += width_of(text)
    yield from (f'<path class="s{ink}" d="{path}"/>' for ink, path in dots.items())
    yield from (f'<path class="{ink}" d="{path}"/>' for ink, path in shapes.items())
    yield from texts


def _dots(letter: str, column: int) -> str:
    """The dots of a Braille character, as strokes two wide."""
    bits, left = ord(letter) - BRAILLE, column * CELL
    return "".join(f"M{left + 1 + 4 * x} {2 + 4 * y}h2" for bit, (x, y) in enumerate(DOTS) if bits >> bit & 1)


def _shape(letter: str, left: int, count: int) -> str:
    """Blocks or lines of one kind as a path; "" for other characters."""
    wide = count * CELL
    if letter in LEFT:
        wide += LEFT.index(letter) + 1 - CELL
        return f"M{left} 1h{wide}v{LINE - 2}h-{wide}z"
    if letter in LOWER:
        tall = 2 * (LOWER.index(letter) + 1)
        return f"M{left} {LINE - tall}h{wide}v{tall}h-{wide}z"
    lines = {
        "░": f"M{left} 7h{wide}v2h-{wide}z",
        "─": f"M{left} 8h{wide}v1h-{wide}z",
        "│": f"M{left + 4} 0h1v{LINE}h-1z",
    }
    return lines.get(letter, "")


def _style(spans: dict[tuple[int, int], str], moments: Sequence[float], total: float, colours: Sequence[str]) -> str:
    """When each span of frames is shown, and the colours."""
    num_frames = len(moments) - 1
    rules = [f".{ink},.b{ink}{{fill:#{ink[1:]}}}.s{ink}{{stroke:#{ink[1:]};stroke-width:2}}" for ink in colours]
    rules += [f"[class^=bc]{{font-weight:600}}g{{animation-duration:{total:g}s;animation-iteration-count:infinite;"
              "animation-timing-function:step-end}"]  # fmt: skip
    for (first, end), name in spans.items():
        if (first, end) == (0, num_frames):
            continue
        begin = "" if first == 0 else "0%{visibility:hidden}"
        rest = "" if end == num_frames else f"{moments[end]:.2f}%{{visibility:hidden}}"
        shown = f"{moments[first]:.2f}%{{visibility:visible}}"
        stay = f"100%{{visibility:{'visible' if end == num_frames else 'hidden'}}}"
        rules.append(f"@keyframes {name}{{{begin}{shown}{rest}{stay}}}.{name}{{animation-name:{name}}}")
    still = "g{animation:none!important;visibility:hidden}g.last{visibility:visible}"
    return "".join(rules) + f"@media (prefers-reduced-motion:reduce){{{still}}}"


def record(folder: str) -> Path:
    """Run the example on a screen, and return its run folder."""
    os.environ["SCRATCH"] = folder
    from make_picture import Terminal

    terminal = Terminal([str(HERE.parent / "example.py"), "--screen"])
    terminal.read(120, until="Test accuracy")
    return find_run(None, folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = find_run(sys.argv[1]) if sys.argv[1:] else record(scratch)
        path = HERE / "motion.svg"
        path.write_text(motion_of(folder), encoding="utf-8")
    print(f"{path.relative_to(HERE.parent)}: {math.ceil(path.stat().st_size / 1000)} kB")


if __name__ == "__main__":
    main()
