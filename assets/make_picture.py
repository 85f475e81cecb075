"""Draws assets/run.svg, the picture in the README, from the run of example.py. ``python assets/make_picture.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

HERE = Path(__file__).resolve().parent
# example.py is no part of the installed package.
sys.path.insert(0, str(HERE.parent))

import example  # noqa: E402
from learnit_r8 import events  # noqa: E402

WIDTH, HEIGHT = 960, 412
INK, QUIET, GRID = "#24292f", "#5f6b76", "#e6e8eb"
CLEAN, FLIPPED, REFUSED, RATE = "#3b7dbf", "#e8742c", "#c62f3b", "#2d8a5f"
NUM_BINS, LOG_LOSS = 36, (-2.0, 1.0)


class Panel(NamedTuple):
    """A rectangle of the picture, and what its edges stand for."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, values: ArrayLike) -> NDArray[np.float64]:
        """Pixels of values on the x axis."""
        return np.interp(values, self.x_range, (self.left, self.right))

    def y(self, values: ArrayLike) -> NDArray[np.float64]:
        """Pixels of values on the y axis."""
        return np.interp(values, self.y_range, (self.bottom, self.top))


def text(x: float, y: float, words: str, *, size: int = 12, color: str = QUIET, **more: str) -> str:
    """Words at a point; ``more`` are attributes of SVG."""
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}"{extra}>{words}</text>'


def note(x: float, y: float, lines: Iterable[str], *, color: str, anchor: str = "start") -> Iterable[str]:
    """Lines of text below each other."""
    for row, words in enumerate(lines):
        yield text(x, y + 16 * row, words, color=color, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, color: str, *, width: float = 1, dash: str = "none") -> str:
    """A straight line."""
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="{color}" stroke-width="{width}" stroke-dasharray="{dash}"/>'


def curve(panel: Panel, x: ArrayLike, y: ArrayLike, color: str, *, width: float = 1.5, dash: str = "none") -> str:
    """A line through points, given in the units of the panel."""
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(panel.x(x), panel.y(y), strict=True))
    style = f'fill="none" stroke="{color}" stroke-width="{width}" stroke-dasharray="{dash}" stroke-linejoin="round"'
    return f'<polyline points="{points}" {style}/>'


def y_axis(panel: Panel, ticks: Iterable[float], *, title: str) -> Iterable[str]:
    """Grid lines with their values, and the title above."""
    for tick in ticks:
        y = float(panel.y(tick))
        yield line(panel.left, y, panel.right, y, GRID)
        yield text(panel.left - 7, y + 4, f"{tick:g}", text_anchor="end")
    yield line(panel.left, panel.bottom, panel.right, panel.bottom, QUIET)
    yield text(panel.left, panel.top - 8, title, color=INK, font_weight="600")


def x_axis(panel: Panel, ticks: Iterable[tuple[float, str]], *, title: str) -> Iterable[str]:
    """Values below the panel, and the title below them."""
    for value, words in ticks:
        x = float(panel.x(value))
        yield line(x, panel.bottom, x, panel.bottom + 4, QUIET)
        yield text(x, panel.bottom + 18, words, text_anchor="middle")
    yield text((panel.left + panel.right) / 2, panel.bottom + 36, title, text_anchor="middle")


def steps_of(diary: example.Diary) -> list[events.StepDone]:
    """Every step that was learned from."""
    return [event for event in diary.events if isinstance(event, events.StepDone)]


def draw_losses(diary: example.Diary, total_steps: int) -> Iterable[str]:
    """Left, above: the loss, interrupted where it was refused."""
    panel = Panel(58, 96, 530, 248, (0, total_steps), (0, 2.5))
    refused, restored, steps = diary.last(events.BatchRefused), diary.last(events.RolledBack), steps_of(diary)
    yield from y_axis(panel, (0, 1, 2), title="loss of each batch")
    x = float(panel.x(refused.step))
    yield line(x, panel.top, x, 352, REFUSED, dash="4 3")
    before = [event for event in steps if event.step < refused.step]
    for part in (before, steps[len(before) :]):
        yield curve(panel, [event.step for event in part], [event.loss for event in part], CLEAN, width=1.3)
    yield text(x, panel.top + 6, "&#215;", size=22, color=REFUSED, text_anchor="middle", font_weight="700")
    story = (
        f"step {refused.step}: loss is NaN, refused",
        f"model restored from the {restored.source} of step {restored.to_step}",
        f"{sum(event.steady for event in steps)} batches of easy samples",
    )
    yield from note(x + 12, panel.top + 4, story, color=REFUSED)


def draw_rates(diary: example.Diary, run: example.Run) -> Iterable[str]:
    """Left, below: the learning rate, and what the schedule alone would give."""
    total, steps = run.r8.total_steps or 1, steps_of(diary)
    panel = Panel(58, 286, 530, 352, (0, total), (0, example.PEAK_LR * 1.05))
    yield from y_axis(panel, (0, example.PEAK_LR), title="learning rate")
    yield from x_axis(panel, ((step, str(step)) for step in range(0, total, 100)), title="step")
    every = np.arange(0, total + 1, 8)
    yield curve(panel, every, [run.r8.schedule(step / total) for step in every], QUIET, dash="3 3", width=1.2)
    yield curve(panel, [event.step for event in steps], [event.lr for event in steps], RATE, width=1.8)
    yield text(float(panel.x(405)), float(panel.y(0.031)), "schedule")
    yield text(float(panel.x(312)), float(panel.y(0.0035)), "halved", color=RATE)


def draw_samples(task: example.Task, run: example.Run) -> Iterable[str]:
    """Right: how the losses of the samples are distributed when the suspects are asked for."""
    edges = np.linspace(*LOG_LOSS, NUM_BINS + 1)
    loss = np.clip(np.log10(run.early_loss), *LOG_LOSS)
    shares = [100 * np.histogram(loss[rows], edges)[0] / rows.sum() for rows in (~task.flipped, task.flipped)]
    panel = Panel(604, 96, 930, 352, LOG_LOSS, (0, 1.4 * np.max(shares)))
    yield from y_axis(panel, range(0, int(panel.y_range[1]) + 1, 5), title="% of each colour")
    yield from bars(panel, edges, shares[0], CLEAN)
    yield from bars(panel, edges, shares[1], FLIPPED)
    ticks = ((power, f"{10.0**power:g}") for power in (-2, -1, 0, 1))
    yield from x_axis(
        panel, ticks, title=f"running loss of the sample after epoch {example.SUSPECTS_AFTER} (log scale)"
    )
    x = float(panel.x(np.log10(run.r8.table.untrained_loss)))
    yield line(x, panel.top, x, panel.bottom, INK, dash="4 3")
    found = run.suspects.indices
    story = (
        "stay worse than an untrained network:",
        f"{len(found)} suspects, {task.flipped[found].sum()} of them flipped",
    )
    yield from note(x - 8, panel.top + 12, story, color=INK, anchor="end")
    yield text(x + 4, panel.top + 21, "&#8594;", size=16, color=INK)


def bars(panel: Panel, edges: NDArray[np.float64], heights: NDArray[np.float64], color: str) -> Iterable[str]:
    """A histogram that lets another one shine through."""
    for left, right, height in zip(panel.x(edges[:-1]), panel.x(edges[1:]), heights, strict=True):
        if height > 0:
            top = float(panel.y(height))
            where = (
                f'x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" height="{panel.bottom - top:.1f}"'
            )
            yield f'<rect {where} fill="{color}" fill-opacity="0.8"/>'


def draw_heads(task: example.Task) -> Iterable[str]:
    """Titles and legends."""
    heading = partial(text, size=16, color=INK, font_weight="600")
    yield heading(28, 38, "A NaN in mid-training is refused and rolled back")
    yield heading(574, 38, "Which labels are wrong?")
    flipped = int(task.flipped.sum())
    yield text(574, 60, "&#9632;", color=CLEAN, size=14) + text(590, 60, f"{len(task.labels) - flipped} right labels")
    yield text(704, 60, "&#9632;", color=FLIPPED, size=14) + text(720, 60, f"{flipped} labels flipped on purpose")
    yield text(28, 60, f"A small network on {len(task.labels)} digits, {example.EPOCHS} epochs (python example.py)")


def picture() -> str:
    """The SVG file."""
    task, diary = example.load_task(), example.Diary()
    run = example.train_with_r8(task, poison_step=example.POISON_STEP, listeners=[diary])
    total = run.r8.total_steps or 1
    card = f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" fill="#ffffff" stroke="#d0d7de"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    parts = [
        f'{head} font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>A training run under R8Scheduler: a NaN loss is refused, and flipped labels stand out</title>",
        card,
        *draw_heads(task),
        *draw_losses(diary, total),
        *draw_rates(diary, run),
        *draw_samples(task, run),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (HERE / "run.svg").write_text(picture(), encoding="utf-8")
