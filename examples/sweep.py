"""Three learning rates, compared: one run for each, then a table, a list by the best value, and a page.

    python examples/sweep.py

Look again with:

    learnit-r8 ls runs --sort val_loss
    learnit-r8 compare runs/lr-0.3 runs/lr-0.03 runs/lr-0.003 --html compared.html
"""

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.cli import main as learnit_r8

RATES = (0.3, 0.03, 0.003)


def train(rate):
    """Linear regression with a rate; everything else is the same for all of them."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(600, 20))
    targets = inputs @ rng.normal(size=20) + 0.5 * rng.normal(size=600)
    model = {"w": np.zeros(20)}
    with R8Scheduler(
        500, batch_size=20, num_epochs=10, initial_lr=rate, name=f"lr {rate}", run_dir=f"runs/lr-{rate}",
        config={"rate": rate, "model": "linear"}, notes="how fast can it be?", tags=["sweep"],
        state_callback=lambda: model, load_callback=model.update,
    ) as r8:  # fmt: skip
        for _ in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                error = inputs[batch] @ model["w"] - targets[batch]
                if r8.update_with_loss(error**2):
                    model["w"] = model["w"] - lr * inputs[batch].T @ error / len(batch)
            r8.log(val_loss=np.mean((inputs[500:] @ model["w"] - targets[500:]) ** 2))


def main():
    for rate in RATES:
        train(rate)
    folders = [f"runs/lr-{rate}" for rate in RATES]
    learnit_r8(["ls", "runs", "--sort", "val_loss"])
    print()
    learnit_r8(["compare", *folders, "--html", "compared.html"])


if __name__ == "__main__":
    main()
