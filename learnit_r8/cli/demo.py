"""``learnit-r8 demo``: a small network trained for some seconds, to show the screen."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from ..journal.run import Run, is_run
from ..scheduler import R8Scheduler
from ..testing import ToyTask

NUM_SAMPLES, BATCH_SIZE, EPOCHS, RATE, SEED = 6000, 64, 20, 0.01, 8
NUM_HELD_OUT = 1000
MISLABELLED_SHARE = 0.03
POISON_PROGRESS = 0.4
NAME = "demo"


def demo(options: argparse.Namespace) -> int:
    """Train for about ``--seconds``, with the screen where there is a terminal."""
    if options.run_dir and is_run(Path(options.run_dir)) and Run(options.run_dir).name != NAME:
        raise ValueError(f"--run-dir must not be the folder of another run, got {options.run_dir!r}.")
    folder = options.run_dir or Path(tempfile.mkdtemp(prefix="r8-demo-")) / "demo"
    try:
        run(folder, options.seconds)
    except KeyboardInterrupt:
        return 130
    print(f"now: learnit-r8 replay {folder}, or learnit-r8 report {folder} --open")
    return 0


def run(folder: str | Path, seconds: float) -> None:
    """Train with some wrong labels, and with weights that go bad once, so that it lasts some seconds."""
    task, held_out, rng = ToyTask(NUM_SAMPLES, SEED), ToyTask(NUM_HELD_OUT, SEED), np.random.default_rng(SEED)
    wrong = np.flatnonzero(rng.random(NUM_SAMPLES) < MISLABELLED_SHARE)
    task.labels[wrong] = (task.labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    names = [f"train/{number:05d}" for number in range(NUM_SAMPLES)]
    with R8Scheduler(
        NUM_SAMPLES, batch_size=BATCH_SIZE, num_epochs=EPOCHS, initial_lr=RATE, sample_ids=names, name=NAME,
        state_callback=task.state, load_callback=task.load, use_curses=True, run_dir=folder,
    ) as r8:  # fmt: skip
        began, is_poisoned = time.monotonic(), False
        for epoch in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                if r8.update_with_loss(task.losses(batch)):
                    task.step(lr)
                if r8.progress > POISON_PROGRESS and not is_poisoned:
                    is_poisoned = True
                    task.weights[0][0] = np.nan
                time.sleep(max(0.0, began + r8.progress * seconds - time.monotonic()))
            held_out.weights = task.weights
            r8.log(val_loss=held_out.loss())
            print(f"epoch {epoch + 1}: what a program prints goes to the output view (key 5)")
