"""Validate after each epoch, stop when the loss no longer improves, and go back to the best model.

python examples/tasks/early_stopping.py
"""

from __future__ import annotations

import numpy as np

from learnit_r8 import R8Scheduler

NUM_TRAIN, NUM_VALIDATED, NUM_INPUTS = 60, 200, 40


def main() -> None:
    """Train a linear model with more inputs than it can tell from noise, and stop before it learns that by heart."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(NUM_TRAIN + NUM_VALIDATED, NUM_INPUTS))
    targets = inputs[:, :3].sum(1) + rng.normal(size=len(inputs))
    model = {"w": np.zeros(NUM_INPUTS)}
    r8 = R8Scheduler(
        NUM_TRAIN, batch_size=10, num_epochs=200, initial_lr=0.05, scheduler_mode="constant",
        state_callback=lambda: model, load_callback=model.update,
        monitor="val_loss", early_stopping=5, handle_signals=False,
    )  # fmt: skip
    for epoch in r8.epoch_iterator():
        for batch, lr in r8.batch_iterator():
            error = inputs[batch] @ model["w"] - targets[batch]
            if r8.update_with_loss(error**2):
                model["w"] = model["w"] - lr * inputs[batch].T @ error / len(batch)
        val_loss = np.mean((inputs[NUM_TRAIN:] @ model["w"] - targets[NUM_TRAIN:]) ** 2)
        print(f"epoch {epoch + 1}: validation {val_loss:.3f}")
        r8.log(val_loss=val_loss)
    best = r8.load_best()
    now = np.mean((inputs[NUM_TRAIN:] @ model["w"] - targets[NUM_TRAIN:]) ** 2)
    print(f"{r8.phase} after {r8.current_epoch} of 200 epochs; ", end="")
    print(f"the best model is back: {now:.3f} ({best:.3f} when it was kept)")


if __name__ == "__main__":
    main()
