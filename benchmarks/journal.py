"""What a run folder costs a training, and how fast a long one is on the screen.

Prints the processor time a step takes with a listener that only appends (the events themselves) and with a journal,
and the time from an import to the first picture of a run of 50 MB. ``--quick`` measures less.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from learnit_r8 import R8Scheduler, events
from learnit_r8.events.codec import to_json

MUST_STEP, AIM_STEP = 8.0, 3.0
NUM_SAMPLES = 50_000
MUST_FRAME, AIM_FRAME = 500.0, 300.0

FIRST_FRAME = """
import sys, time
import learnit_r8.cli.runs
from learnit_r8.cli import _parser
from learnit_r8.dashboard.state.ui_state import UiState
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.watch import Watch
began = time.perf_counter()
owner = Watch(sys.argv[1])
lines = render(owner.view, UiState(mode="watch"), 120, 40, scene=owner.scene())
first = time.perf_counter() - began
while owner._loader is not None:
    time.sleep(0.05)
    for event in owner.events():
        owner.view.fold(event)
whole = time.perf_counter() - began
loaded = {name.split(".")[0] for name in sys.modules} & {"torch", "tensorflow", "jax", "keras", "matplotlib"}
print(first * 1e3, whole, len(lines), owner.view.step, loaded or "none")
"""


def cpu_per_step(num_steps: int, **more: Any) -> float:
    """Microseconds of processor time of the whole process a step, the journal's thread included."""
    r8 = R8Scheduler(NUM_SAMPLES, batch_size=32, num_steps=num_steps, **more)
    losses = np.full(32, 1.5)
    began = time.process_time()
    for _ in r8.epoch_iterator():
        for batch, _ in r8.batch_iterator():
            r8.update_with_loss(losses[: len(batch)])
    spent = time.process_time() - began
    r8.close()
    return spent / num_steps * 1e6


def print_step_cost(repeats: int, num_steps: int) -> None:
    """Medians of interleaved runs."""
    names = ("nobody listens", "a listener that appends", "journal")
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            for name in names:
                heard: list[events.Event] = []
                more: dict[str, Any] = {"listeners": [heard.append]} if "appends" in name else {}
                if name == "journal":
                    more = {"run_dir": Path(scratch) / str(repeat)}
                times[name].append(cpu_per_step(num_steps, **more))
    base = statistics.median(times[names[0]])
    print(
        f"{'draw + report, N = 5e4, B = 32':<32}{'CPU us a step':>14}{'more':>8}  must {MUST_STEP:g}, aim {AIM_STEP:g}"
    )
    for name in names:
        median = statistics.median(times[name])
        print(f"{name:<32}{median:>14.2f}{median - base:>8.2f}")


def write_long_run(folder: Path, size: int) -> int:
    """A run folder whose journal has so many bytes; returns its records."""
    folder.mkdir()
    started = events.RunStarted(0, 0.0, "long", 10**6, 64, 15625, 10**9, None, "balanced")
    rng, written, count = np.random.default_rng(0), 0, 0
    with open(folder / "events.jsonl", "w", encoding="utf-8") as file:
        written += file.write(to_json(started)[:-1] + ', "time": 1700000000.0}\n')
        while written < size:
            count += 1
            loss = 0.3 + 2 / (1 + count / 2e4) + 0.1 * float(rng.random())
            done = events.StepsDone(
                50 * count, count / 4, 50, 50 * count // 15625, 50 * count / 1e9, loss, loss * 0.9, loss * 1.2, loss,
                loss, 0.01, 3200, 0, 0.001, 0.0,
            )  # fmt: skip
            written += file.write(to_json(done)[:-1] + f', "time": {1.7e9 + count / 4}}}\n')
    return count


def print_first_frame(repeats: int, size: int) -> None:
    """Median time to the first picture, in fresh processes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        count = write_long_run(folder, size)
        first, whole = [], []
        for _ in range(repeats):
            done = subprocess.run(
                [sys.executable, "-c", FIRST_FRAME, str(folder)], capture_output=True, text=True, check=True
            )
            printed = done.stdout.split()
            first.append(float(printed[0]))
            whole.append(float(printed[1]))
    print(f"\na run of {size / 1e6:.0f} MB, {count:,} records; frameworks loaded: {' '.join(printed[4:])}")
    print(f"first picture {statistics.median(first):.0f} ms after import  must {MUST_FRAME:g}, aim {AIM_FRAME:g}")
    print(f"all of it {statistics.median(whole):.1f} s, in the background  aim 5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, a shorter run")
    quick = parser.parse_args().quick
    print_step_cost(3 if quick else 7, 30_000 if quick else 100_000)
    print_first_frame(1 if quick else 3, 5_000_000 if quick else 50_000_000)


if __name__ == "__main__":
    main()
