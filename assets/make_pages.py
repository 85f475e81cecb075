"""Draws rate.png, gallery.png and report.png: ``python assets/make_pages.py``, with matplotlib, Pillow and Chromium.

The first is example.py at a peak rate of 30; the others are parts of the pages that examples write, as a browser
shows them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import example  # noqa: E402
from learnit_r8 import events  # noqa: E402
from learnit_r8.report import write_report  # noqa: E402
from learnit_r8.testing import record_events  # noqa: E402

RATE = 30.0
WIDTH = 1200
GALLERY = """header, nav, footer, section { display: none !important }
section:has(.gallery) { display: block !important }"""
"""A style that leaves only the gallery of a page."""

BLUE, RED, INK, RULE = "#1f57b8", "#b3362b", "#1d2430", "#dfe3ea"


def draw_rate() -> None:
    """Losses and rates of a training at a far too high rate, with R8 and without."""
    heard = record_events()
    task = example.load_task()
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        run = example.train_with_r8(task, rate=RATE, listeners=[heard])
        plain = example.train_plainly(task, run.r8.schedule)
        losses = losses_of_plain(task, run.r8)
    steps = [event for event in heard if isinstance(event, events.StepDone)]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(12, 5), dpi=100, sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot(losses, color=RED, linewidth=1.2)
    above.plot([event.step for event in steps], [event.loss for event in steps], color=BLUE, linewidth=1.2)
    above.set(yscale="log", ylim=(0.02, 100), ylabel="loss of the batch")
    above.text(520, 8, f"plain shuffle: {plain:.1%} test accuracy", color=RED, fontsize=13)
    above.text(520, 0.5, f"R8: {run.accuracy:.1%}", color=BLUE, fontsize=13)
    total = run.r8.total_steps or 1
    below.plot([run.r8.schedule(step / total) for step in range(total)], color=RED, linewidth=1.2)
    below.plot([event.step for event in steps], [event.lr for event in steps], color=BLUE, linewidth=1.2)
    below.set(yscale="log", ylim=(1e-3, 100), ylabel="learning rate", xlabel="step", xlim=(0, total))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=RULE)
    figure.suptitle(f"Somebody typed a learning rate of {RATE:g}", x=0.012, ha="left", color=INK, fontsize=15)
    figure.savefig(HERE / "rate.png", facecolor="white")


def losses_of_plain(task: example.Task, r8: example.R8Scheduler) -> list[float]:
    """The loss of every batch of `example.train_plainly`."""
    model, rng, losses = example.Mlp(0), np.random.default_rng(0), []
    size, batch = len(task.labels), example.BATCH_SIZE
    total = example.EPOCHS * -(-size // batch)
    for _ in range(example.EPOCHS):
        order = rng.permutation(size)
        for start in range(0, size, batch):
            chosen = order[start : start + batch]
            losses.append(float(model.losses(task.images[chosen], task.labels[chosen]).mean()))
            model.step(r8.schedule((len(losses) - 1) / total))
    return losses


def draw_gallery(scratch: Path) -> None:
    """The first two rows of the labels that look wrong."""
    page = scratch / "labels.html"
    subprocess.run([sys.executable, HERE.parent / "examples" / "find_wrong_labels.py", "--out", page], check=True)
    text = page.read_text(encoding="utf-8").replace("</head>", f"<style>{GALLERY}</style></head>")
    page.write_text(text, encoding="utf-8")
    shoot(page, "gallery.png", 620)


def draw_report(scratch: Path) -> None:
    """What the report of example.py begins with."""
    example.train_with_r8(example.load_task(), poison_step=example.POISON_STEP, run_dir=scratch / "run")
    shoot(write_report(scratch / "run", scratch / "report.html"), "report.png", 1000)


def shoot(page: Path, name: str, high: int) -> None:
    """Save what a browser shows of the top of a page, in few colours."""
    picture = page.with_suffix(".png")
    command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{high}"]
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(128).save(HERE / name, optimize=True)
    print(f"assets/{name}")


if __name__ == "__main__":
    draw_rate()
    with tempfile.TemporaryDirectory() as folder:
        draw_gallery(Path(folder))
        draw_report(Path(folder))
