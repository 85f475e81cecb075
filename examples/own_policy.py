"""Your own policies: `select` says which samples to visit, `arrange` which of them share a batch.

It shows how to write them; whether these pay is another question.
"""

from dataclasses import dataclass, field

import numpy as np

from learnit_r8 import Policy, R8Scheduler


@dataclass(frozen=True)
class SkipEasy(Policy):
    """Leaves out each sample of the easiest quarter with some probability, anew in every sweep."""

    probability: float = 0.8

    name = "skip_easy"

    def select(self, chunk, context, rng):
        easy = chunk.loss < np.nanquantile(chunk.loss, 0.25)
        return ~easy | (rng.random(len(easy)) >= self.probability), None


@dataclass(frozen=True)
class MatchMean(Policy):
    """Swaps samples between the batches of another policy until each batch's mean loss is near that of the chunk.

    In every round the batches are paired from both ends of their ranking by mean loss. A pair swaps the highest loss
    of one for the lowest of the other if that reduces the larger of their two gaps.
    """

    inner: Policy = field(default_factory=Policy)
    tolerance: float = 0.1
    max_rounds: int = 5

    name = "match_mean"

    def arrange(self, chunk, batch_size, rng):
        order = self.inner.arrange(chunk, batch_size, rng).copy()
        loss = fill_in(chunk.loss).astype(np.float64)
        rows = len(order) // batch_size
        batches = order[: rows * batch_size].reshape(rows, batch_size)
        for _ in range(self.max_rounds):
            if not swap_extremes(batches, loss, loss.mean(), self.tolerance * abs(loss.mean())):
                break
        return order


def fill_in(loss):
    """The losses with unseen samples, which are NaN, spread evenly over the ranks of the seen ones."""
    unseen = np.isnan(loss)
    seen, count = np.sort(loss[~unseen]), int(unseen.sum())
    if not seen.size:
        return np.zeros(len(loss), np.float32)
    filled = loss.copy()
    filled[unseen] = seen[(2 * np.arange(count) + 1) * len(seen) // max(1, 2 * count)]
    return filled


def swap_extremes(batches, loss, target, tolerance):
    """Swap one sample between batches paired from both ends of their ranking by mean loss; False if none swapped."""
    values = loss[batches]
    gap = values.mean(axis=1) - target
    ranked = gap.argsort(kind="stable")
    low, high = ranked[: len(ranked) // 2], ranked[::-1][: len(ranked) // 2]
    top, bottom = values[high].argmax(axis=1), values[low].argmin(axis=1)
    moved = (values[high, top] - values[low, bottom]) / batches.shape[1]
    before = np.maximum(np.abs(gap[high]), np.abs(gap[low]))
    after = np.maximum(np.abs(gap[high] - moved), np.abs(gap[low] + moved))
    better = (before > tolerance) & (after < before)
    high, low, top, bottom = high[better], low[better], top[better], bottom[better]
    batches[high, top], batches[low, bottom] = batches[low, bottom], batches[high, top]
    return bool(len(high))


class SoftmaxRegression:
    def __init__(self):
        self.weights = np.zeros((65, 10))

    def losses(self, images, labels):
        self.inputs = np.column_stack([images, np.ones(len(images))])
        logits = self.inputs @ self.weights
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        self.error = (p - np.eye(10)[labels]) / len(labels)
        return -np.log(p[np.arange(len(labels)), labels])

    def step(self, lr):
        self.weights -= lr * self.inputs.T @ self.error


def train(images, labels, policy):
    model = SoftmaxRegression()
    with R8Scheduler(len(labels), batch_size=32, num_epochs=20, initial_lr=0.5, policy=policy) as r8:
        for _ in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                if r8.update_with_loss(model.losses(images[batch], labels[batch])):
                    model.step(lr)
    return r8


if __name__ == "__main__":
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    print("mean visits     Q1 (easiest)    Q2      Q3      Q4 (hardest)")
    for policy in ("balanced", SkipEasy(), MatchMean()):
        r8 = train(images / 16, labels, policy)
        print(f"{r8.policy.name:<12}" + "".join(f"{quartile.uses:8.1f}" for quartile in r8.table.quartiles()))
