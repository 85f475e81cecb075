"""The task of `framework_ways.py`, and what breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from learnit_r8 import R8Scheduler

NUM_STEPS, NUM_SAMPLES, NUM_INPUTS, BATCH = 600, 512, 8, 16
KINDS = ("nan", "weights", "rate")


class Task:
    """Samples of a linear function with noise.

    Args:
        seed: Of the samples.

    Attributes:
        x: float32[N, 8].
        y: float32[N, 1].
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.x = rng.normal(size=(NUM_SAMPLES, NUM_INPUTS)).astype("f4")
        slope = rng.normal(size=(NUM_INPUTS, 1))
        self.y = (self.x @ slope + 0.3 * rng.normal(size=(NUM_SAMPLES, 1))).astype("f4")

    def loss(self, predict: Callable[[Any], Any]) -> float:
        """The mean squared error of ``predict(x)`` over all samples."""
        return float(((np.asarray(predict(self.x)) - self.y) ** 2).mean())

    def scheduler(self, lr: float, **callbacks: Any) -> R8Scheduler:
        return R8Scheduler(
            NUM_SAMPLES, batch_size=BATCH, num_steps=NUM_STEPS, initial_lr=lr, seed=self.seed, **callbacks
        )


class Faults:
    """Faults of one kind, at steps that follow from a seed.

    Args:
        kind: "nan": one batch of inputs is NaN; "weights": they become 30 times as large; "rate": 1,000 times as high
            for five steps; None: nothing.
        seed: Of the steps.
        num_faults: One, at a step in [100, 450); or two, a first in [100, 250) and a second in [300, 450).
    """

    def __init__(self, kind: str | None, seed: int, num_faults: int) -> None:
        self._kind = kind
        bounds = [(100, 450)] if num_faults == 1 else [(100, 250), (300, 450)]
        steps = [np.random.default_rng([num_faults, seed]).integers(*bound) for bound in bounds]
        self._left = {int(step) + late for step in steps for late in range(5 if kind == "rate" else 1)}

    def strikes(self, kind: str, step: int) -> bool:
        """Whether this kind of fault happens at a step; each happens once, also if the step comes again."""
        if kind != self._kind or step not in self._left:
            return False
        self._left.discard(step)
        return True

    def check(self) -> None:
        """Raise RuntimeError if the training has ended before all of them."""
        if self._left:
            raise RuntimeError(f"no {self._kind} at the steps {sorted(self._left)}")

    def of(self, step: int) -> tuple[np.float32, np.float32, np.float32]:
        """What inputs, weights and rate of a step are multiplied by."""
        return (
            np.float32("nan" if self.strikes("nan", step) else 1),
            np.float32(30 if self.strikes("weights", step) else 1),
            np.float32(1000 if self.strikes("rate", step) else 1),
        )
