"""Which labels look wrong? Train for some epochs, report the loss of every sample, and ask.

python examples/tasks/find_labels.py
"""

from __future__ import annotations

import numpy as np

from learnit_r8 import R8Scheduler

NUM_SAMPLES, NUM_CLASSES, NUM_WRONG = 1000, 5, 50


def main() -> None:
    """Train a softmax regression on five clouds of points, some with another cloud's label."""
    rng = np.random.default_rng(0)
    truth = rng.integers(NUM_CLASSES, size=NUM_SAMPLES)
    x = rng.normal(size=(NUM_CLASSES, 20))[truth] * 2 + rng.normal(size=(NUM_SAMPLES, 20))
    wrong = rng.choice(NUM_SAMPLES, NUM_WRONG, replace=False)
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, NUM_CLASSES, NUM_WRONG)) % NUM_CLASSES
    weights = np.zeros((20, NUM_CLASSES))

    r8 = R8Scheduler(NUM_SAMPLES, batch_size=20, num_epochs=6, initial_lr=0.1)
    for _ in r8.epoch_iterator():
        for batch, lr in r8.batch_iterator():
            logits = x[batch] @ weights
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            losses = -np.log(shares[np.arange(len(batch)), labels[batch]] + 1e-12)
            if r8.update_with_loss(losses):
                weights -= lr * x[batch].T @ (shares - np.eye(NUM_CLASSES)[labels[batch]]) / len(batch)

    suspects = r8.table.suspects()
    right = np.isin(suspects.indices, wrong).sum()
    print(f"{len(suspects.indices)} suspects, {right} of them among the {NUM_WRONG} wrong labels")
    for index, score, why in zip(suspects.indices[:5], suspects.score, suspects.why, strict=False):
        print(f"sample {index}: label {labels[index]}, score {score:.2f}, {why}")


if __name__ == "__main__":
    main()
