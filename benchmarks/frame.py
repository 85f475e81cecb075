"""What the screen costs: a frame at each size, a folded event, a step that is listened to, a survey of the samples.

A run with made-up losses is driven on a clock turned by hand; then its screen is drawn over and over, with an event
folded between two frames as in a real run. "CPU" is the time of this thread. Bytes are those of the text alone, whole;
what a painter sends of it is less (it sends what changed) plus the colours.

    python benchmarks/frame.py            all of it, about a minute
    python benchmarks/frame.py --quick    without the surveys of ten million samples
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from learnit_r8 import R8Scheduler, SampleTable
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.render.pages import VIEWS
from learnit_r8.dashboard.state.ui_state import Scene, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import choose_theme
from learnit_r8.events import Event
from learnit_r8.events.condenser import Condenser
from learnit_r8.table.losses import EXACT
from learnit_r8.table.survey import Surveyor

SIZES = ((40, 12), (80, 24), (120, 40), (200, 60))
MUST = {(80, 24): (3.0, 0.8), (200, 60): (8.0, 2.0)}
"""Milliseconds of a frame: must, aim."""


class Audience:
    """Folds events into a view, and keeps them."""

    wants_surveys = True

    def __init__(self) -> None:
        self.view = View()
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.view.fold(event)
        self.heard.append(event)


def made_up_run(size: int = 20_000, epochs: int = 12) -> Audience:
    """A run of 12 epochs, 50 ms a step, cut off in the ninth."""
    now = [0.0]
    audience = Audience()
    difficulty = np.random.default_rng(0).gamma(2, 0.5, size)
    r8 = R8Scheduler(
        size, batch_size=64, num_epochs=epochs, name="made up", listeners=[Condenser(audience)], clock=lambda: now[0]
    )
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            now[0] += 0.05
            r8.update_with_loss(difficulty[indices] * (0.2 + 2 * np.exp(-r8.global_step / 900)))
        r8.log(accuracy=0.5 + 0.04 * epoch, val_loss=1 / (1 + epoch))
        if epoch == 8:
            break
    return audience


def frames(audience: Audience, count: int) -> None:
    view, events = audience.view, audience.heard[-count:]
    theme = choose_theme({"TERM": "xterm-256color"})
    print(f"{'size':>8} {'view':<9} {'CPU ms':>8} {'p95':>8} {'text bytes':>11}")
    for width, height in SIZES:
        for name in VIEWS if (width, height) == (120, 40) else VIEWS[:1]:
            spent, size = [], 0
            for event in events:
                began = time.thread_time()
                view.fold(event)
                lines = render(view, UiState(view=name), width, height, theme, Scene(ui_share=0.001))
                spent.append(1000 * (time.thread_time() - began))
                size = sum(len(text.encode()) for line in lines for text, _ in line)
            must = MUST.get((width, height))
            note = f"   must {must[0]:g}, aim {must[1]:g}" if must else ""
            p95 = statistics.quantiles(spent, n=20)[-1]
            print(f"{width:>5}x{height:<3}{name:<9} {statistics.median(spent):8.2f} {p95:8.2f} {size:11,}{note}")


def steps(rounds: int) -> None:
    """A step of the public loop, with nobody listening and with the screen's listener, in turns."""
    audiences = {"nobody": list, "a condenser": lambda: [Condenser(lambda event: None)]}
    audiences["condenser and view"] = lambda: [Condenser(Audience())]
    spent: dict[str, list[float]] = {name: [] for name in audiences}
    for _ in range(rounds):
        for name, listeners in audiences.items():
            r8 = R8Scheduler(200_000, batch_size=32, num_epochs=4, listeners=listeners())
            began = time.thread_time()
            for _ in r8.epoch_iterator():
                for _ in r8.batch_iterator():
                    r8.update_with_loss(1.0)
            spent[name].append(1e6 * (time.thread_time() - began) / r8.global_step)
    print("\na step of the public loop, with surveys where somebody wants them")
    for name, times in spent.items():
        print(f"  heard by {name:<20} {statistics.median(times):6.2f} us")


def surveys(sizes: tuple[int, ...]) -> None:
    """A survey of tables of exact losses; at most .5 % of the training time goes into them."""
    print("\na survey")
    for size in sizes:
        table = SampleTable(size, batch_size=256)
        table.storage.part_size = EXACT
        table.learner.observe(1.0, 1.0)
        losses = np.random.default_rng(0).lognormal(0, 1, size)
        table.learner.learn(np.arange(size), losses, None, np.full(size, 1.0))
        surveyor, times = Surveyor(table), []
        for count in range(8):
            began = time.perf_counter()
            fields = surveyor.survey(float(count), epoch=count, epoch_ended=count % 2 == 0, batch_share=())
            times.append(1000 * (time.perf_counter() - began))
        print(f"  N {size:>10,}: {statistics.median(times):6.1f} ms, {fields['num_read']:,} samples read")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the screen costs.")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repetitions")
    quick = parser.parse_args().quick
    frames(made_up_run(), 60 if quick else 300)
    steps(3 if quick else 9)
    surveys((10_000, 100_000) if quick else (10_000, 100_000, 1_000_000, 10_000_000))


if __name__ == "__main__":
    main()
