"""A run to be watched from another terminal, with the command that it prints.

python examples/tasks/watched.py FOLDER
"""

from __future__ import annotations

import sys
import time

import numpy as np

from learnit_r8 import R8Scheduler


def main() -> None:
    """Train slowly, for some seconds, and record the run."""
    folder = sys.argv[1] if len(sys.argv) > 1 else "runs/watched"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 5))
    y = x @ np.array([1.0, -2.0, 3.0, 0.5, 0.0])
    weights = np.zeros(5)
    with R8Scheduler(1000, batch_size=50, num_epochs=4, initial_lr=0.1, run_dir=folder, name="watched") as r8:
        print(f"learnit-r8 watch {r8.run_dir}", flush=True)
        for _ in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                error = x[batch] @ weights - y[batch]
                weights -= lr * x[batch].T @ error / len(batch)
                r8.update_with_loss(error**2)
                time.sleep(0.02)
            r8.log(error=float(np.abs(weights - [1.0, -2.0, 3.0, 0.5, 0.0]).max()))


if __name__ == "__main__":
    main()
