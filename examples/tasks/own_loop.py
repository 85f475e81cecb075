"""Your own numpy loop, whose model is restored after a NaN.

python examples/tasks/own_loop.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learnit_r8 import R8Scheduler

Floats = NDArray[np.float64]


class Linear:
    """A linear model."""

    def __init__(self, size: int) -> None:
        self.weights: Floats = np.zeros(size)

    def state(self) -> dict[str, Floats]:
        """All that training changes."""
        return {"weights": self.weights}

    def load(self, state: dict[str, Floats]) -> None:
        """Put a state back."""
        self.weights = state["weights"]


def main() -> None:
    """Train, with an accident in the middle."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8))
    y = x @ rng.normal(size=8)
    model = Linear(8)
    r8 = R8Scheduler(
        len(x), batch_size=50, num_epochs=5, initial_lr=0.1, state_callback=model.state, load_callback=model.load
    )
    for _ in r8.epoch_iterator():
        for batch, lr in r8.batch_iterator():
            error = x[batch] @ model.weights - y[batch]
            if r8.update_with_loss(error**2):
                model.weights = model.weights - lr * x[batch].T @ error / len(batch)
            if r8.global_step == 125:
                model.weights = model.weights * np.nan
    print(r8.summary())
    print(f"largest error: {np.abs(x @ model.weights - y).max():.2f}")


if __name__ == "__main__":
    main()
