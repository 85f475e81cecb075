"""Transient faults of three kinds, for every way of training: what each must be healed of."""

from __future__ import annotations

import numpy as np

FAULTS = ("nan", "weights", "rate")
NUM_STEPS = 600
FAULT_STEPS = (200, 380)
"""Twice in a run."""

rng = np.random.default_rng(3)
X = rng.normal(size=(512, 4)).astype("f4")
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0], "f4") + 0.3 * rng.normal(size=512)).astype("f4")[:, None]


class Faults:
    """Faults of one kind at given steps.

    Args:
        kind: "nan": one NaN in the inputs; "weights": they become 30 times as large; "rate": 1,000 times as high for
            five steps; None: nothing.
        steps: When; each happens once.
    """

    def __init__(self, kind, steps=FAULT_STEPS):
        self.kind = kind
        self._left = {step + late for step in steps for late in range(5 if kind == "rate" else 1)} if kind else set()

    def strikes(self, kind, step):
        """Whether a fault of this kind happens at this step."""
        if kind != self.kind or step not in self._left:
            return False
        self._left.discard(step)
        return True

    def inputs(self, step, x):
        """The inputs of a batch."""
        return x * np.float32("nan") if self.strikes("nan", step) else x

    def rate(self, step, lr):
        """The learning rate of a batch."""
        return lr * 1000 if self.strikes("rate", step) else lr

    def weights_by(self, step):
        """What the weights are multiplied by before a batch."""
        return 30.0 if self.strikes("weights", step) else 1.0


def assert_healed(run):
    """Each kind of fault ends within 10 % of the undisturbed run; ``run`` takes `Faults` and returns the last loss."""
    undisturbed = run(Faults(None))
    for kind in FAULTS:
        loss = run(Faults(kind))
        assert loss <= 1.1 * undisturbed, (kind, loss, undisturbed)
