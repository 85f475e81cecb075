"""A run that continues after a kill: start the same script again.

python examples/tasks/resume_after_kill.py FOLDER --die-at 60      # ends as kill -9 would
python examples/tasks/resume_after_kill.py FOLDER                  # continues, and prints the weights
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from numpy.typing import NDArray

from learnit_r8 import R8Scheduler

weights: NDArray[np.float64] = np.zeros(5)


def save(state_dict: dict[str, object], path: str) -> None:
    """Write the model to the path that is given."""
    with open(path, "wb") as file:
        np.save(file, weights)


def load(path: str) -> None:
    """Read what `save` wrote."""
    weights[:] = np.load(path)


def main() -> None:
    """Train, and die if asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--die-at", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 5))
    y = x @ np.array([1.0, -2.0, 3.0, 0.5, 0.0]) + 0.1 * rng.normal(size=1000)
    with R8Scheduler(
        1000,
        batch_size=20,
        num_epochs=3,
        initial_lr=0.05,
        save_callback=save,
        load_callback=load,
        checkpoint_dir=options.folder,
        checkpoint_every=10,
        resume="auto",
    ) as r8:
        print(f"begins at step {r8.global_step}")
        for _ in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                error = x[batch] @ weights - y[batch]
                weights[:] -= lr * x[batch].T @ error / len(batch)
                r8.update_with_loss(error**2)
                if r8.global_step == options.die_at:
                    os._exit(9)
    print(f"ends at step {r8.global_step} with weights {weights.tolist()}")


if __name__ == "__main__":
    main()
