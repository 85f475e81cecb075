"""A loop without any framework: numpy, a test each 100 steps, early stopping, and batches that R8Scheduler draws.

python examples/plain_loop.py
"""

from __future__ import annotations

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.loops import early_stopping, every, keras_bar, logs, loop, report_to, scheduled

rng = np.random.default_rng(0)
weights = rng.normal(size=8)
x = rng.normal(size=(3000, 8))
y = x @ weights + 0.1 * rng.normal(size=3000)
train, test = (x[:2500], y[:2500]), (x[2500:], y[2500:])


def train_step(w, batch):
    rows, target = batch.data
    error = rows @ w - target
    return logs().add_output("losses", error**2), w - batch.lr * rows.T @ error / len(rows)


def test_step(w):
    return logs().add_metric("test_mse", np.mean((test[0] @ w - test[1]) ** 2))


def main():
    r8 = R8Scheduler(2500, batch_size=25, num_epochs=20, initial_lr=0.05)
    w, history, elapsed = loop(
        np.zeros(8),
        scheduled(r8, train),
        {
            every(1): [train_step, report_to(r8, "losses")],
            every(100): test_step,
        },
        [early_stopping("test_mse", patience=3, min_delta=1e-5), keras_bar(total=r8.total_steps)],
    )
    steps, errors = history.collect("steps", "test_mse")
    print(
        f"test error {errors[0]:.4f} after {steps[0]} steps, at best {min(errors):.4f}; stopped after {elapsed.steps}"
    )
    print(f"largest error of a weight: {np.abs(w - weights).max():.3f}")


if __name__ == "__main__":
    main()
