"""``learnit-r8 demo``: a fake model, trained with the real scheduler and the real screen."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..journal.run import Run, is_run
from ..scheduler import R8Scheduler

NUM_SAMPLES, BATCH_SIZE, EPOCHS = 6000, 64, 20
MISLABELLED_SHARE, FORGETFUL_SHARE = 0.03, 0.05
POISON_PROGRESS = 0.4
NAME = "demo"


class FakeModel:
    """A model whose losses fall as in a training, with mislabelled samples, and weights that go bad once.

    Attributes:
        state: The "weights": skill on every sample, and a bias of the losses.
    """

    def __init__(self, seed: int = 8) -> None:
        self._rng = rng = np.random.default_rng(seed)
        self.state = {"skill": np.zeros(NUM_SAMPLES), "bias": np.zeros(1)}
        self._speed = rng.lognormal(-0.9, 0.8, NUM_SAMPLES)
        self._wrong = rng.random(NUM_SAMPLES) < MISLABELLED_SHARE
        self._forgets = rng.random(NUM_SAMPLES) < FORGETFUL_SHARE

    def train(self, batch: NDArray[np.int64], lr: float) -> NDArray[np.float64]:
        """Learn from a batch; returns its losses, float64[B], NaN once a weight is."""
        skill = self.state["skill"]
        noise = self._rng.normal(0, 0.12, len(batch))
        wobble = np.where(self._forgets[batch], self._rng.random(len(batch)) * 1.5, 0.0)
        losses = 0.02 + 2.3 * np.exp(-self._speed[batch] * skill[batch]) + wobble
        losses = np.where(self._wrong[batch], 2.6 + 0.25 * skill[batch] ** 0.5, losses) * np.exp(noise)
        skill += lr * 9 * len(batch) / NUM_SAMPLES
        skill[batch] += lr * 4
        return np.asarray(losses + self.state["bias"][0])

    def accuracy(self) -> float:
        """Accuracy of a fake validation."""
        return float(0.97 - 0.87 * np.exp(-0.55 * self.state["skill"].mean()) + self._rng.normal(0, 0.003))


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


def run(
    folder: str | Path, seconds: float, *, sleep: Callable[[float], None] = time.sleep, use_curses: bool = True
) -> R8Scheduler:
    """Train the fake model for some seconds, with this run folder."""
    model = FakeModel()
    names = [f"train/{number % 10}/{number:05d}.png" for number in range(NUM_SAMPLES)]
    with R8Scheduler(
        NUM_SAMPLES, batch_size=BATCH_SIZE, num_epochs=EPOCHS, initial_lr=0.1, sample_ids=names, name=NAME,
        state_callback=lambda: model.state, load_callback=lambda backup: model.state.update(backup),
        use_curses=use_curses, run_dir=folder,
    ) as r8:  # fmt: skip
        began, is_poisoned = time.monotonic(), False
        for epoch in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                r8.update_with_loss(model.train(batch, lr))
                if r8.progress > POISON_PROGRESS and not is_poisoned:
                    is_poisoned = True
                    model.state["bias"][0] = np.nan
                sleep(max(0.0, began + r8.progress * seconds - time.monotonic()))
            r8.log(val_accuracy=model.accuracy())
            print(f"epoch {epoch + 1}: what a program prints goes to the output view (key 5)")
    return r8
