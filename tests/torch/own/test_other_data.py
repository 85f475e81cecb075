"""Batches of the user's own whose data change, or are rare: nothing is damaged, and next to nothing may be lost."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from learnit_r8.torch import attach


class Batches:
    """A loader over arrays, in their order or shuffled."""

    def __init__(self, *arrays, size, shuffled=None):
        self.arrays, self.size, self.shuffled = (
            [torch.tensor(each, dtype=torch.float32) for each in arrays],
            size,
            shuffled,
        )

    def __len__(self):
        return len(self.arrays[0]) // self.size

    def __iter__(self):
        count = len(self.arrays[0])
        order = np.arange(count) if self.shuffled is None else self.shuffled.permutation(count)
        for start in range(0, len(self) * self.size, self.size):
            rows = torch.as_tensor(order[start : start + self.size].copy())
            yield tuple(each[rows] for each in self.arrays)


def train(make, *, with_r8, epochs=1, hurt_at=None):
    """Returns the error at the end, the updates, and what was said."""
    torch.manual_seed(0)
    model, optimizer, batches, loss_of, error_of = make()
    adapter = attach(model, optimizer, batches, num_epochs=epochs) if with_r8 else None
    updates = 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(epochs) if adapter is None else adapter.epochs():
            for batch in batches if adapter is None else adapter.batches():
                loss = loss_of(batch)
                if adapter is None or adapter.report(loss):
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    updates += 1
                if updates == hurt_at:
                    hurt_at = None
                    next(model.parameters()).data.mul_(-3.0)
        if adapter is not None:
            adapter.close()
    with torch.no_grad():
        return float(error_of()), updates, " ".join(str(each.message) for each in said)


def regression(model, optimizer, batches):
    """What `train` takes, with squared losses; the error is that of the last samples."""

    def loss_of(batch):
        return mse_loss(model(batch[0])[:, 0], batch[1])

    last = [each[-500:] for each in batches.arrays]
    return model, optimizer, batches, loss_of, lambda: loss_of(last)


def drifting(seed):
    """A linear model that follows coefficients which walk at random."""
    random = np.random.default_rng(seed)
    slopes, inputs = np.cumsum(random.normal(size=(12_000, 6)) * 0.01, 0), random.normal(size=(12_000, 6))
    targets = (inputs * slopes).sum(1) + 0.05 * random.normal(size=12_000)
    batches, model = Batches(inputs, targets, size=8), nn.Linear(6, 1)
    return regression(model, torch.optim.SGD(model.parameters(), 0.01), batches)


def domains(seed):
    """Three domains in turn, whose number is an input."""
    random = np.random.default_rng(seed)
    inputs, domain = random.normal(size=(9600, 8)), np.repeat(np.arange(3), 3200)
    slopes = random.normal(size=(3, 8))
    targets = (inputs * slopes[domain]).sum(1) / 2 + 0.02 * random.normal(size=9600)
    batches = Batches(np.concatenate([inputs, np.eye(3)[domain]], 1), targets, size=8)
    model = nn.Sequential(nn.Linear(11, 64), nn.ReLU(), nn.Linear(64, 1))
    return regression(model, torch.optim.Adam(model.parameters(), 0.003), batches)


def rare(seed):
    """One sample of two hundred is positive, and the bias says so from the start."""
    random = np.random.default_rng(seed)
    labels = (random.random(12_000) < 0.005).astype(float)
    inputs = random.normal(size=(2, 16))[labels.astype(int)] * 2 + 3.0 * random.normal(size=(12_000, 16))
    batches = Batches(inputs[:9000], labels[:9000], size=8, shuffled=random)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    nn.init.constant_(model[-1].bias, -5.3)

    def loss_of(batch):
        return binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1])

    held_out = [torch.tensor(each[9000:], dtype=torch.float32) for each in (inputs, labels)]
    return model, torch.optim.Adam(model.parameters(), 0.002), batches, loss_of, lambda: loss_of(held_out)


def mirrored(seed):
    """Digits, which the loop mirrors from the eighteenth of 20 epochs on: batches that are drawn again, too."""
    found = load_digits()
    pixels, labels = found.images[:1600] / 16, found.target[:1600]
    batches = Batches(pixels[:1280], labels[:1280], size=32, shuffled=np.random.default_rng(seed))
    model, calls = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), iter(range(10**6))

    def loss_of(batch):
        inputs, targets = batch
        return cross_entropy(model(inputs.flip(2) if next(calls) >= 680 else inputs), targets.long())

    held_out = [torch.tensor(each[1280:], dtype=torch.float32) for each in (pixels, labels)]
    return model, torch.optim.Adam(model.parameters(), 0.005), batches, loss_of, lambda: loss_of(held_out)


@pytest.mark.parametrize("seed", [0, 2])
def test_a_model_that_follows_its_data_is_not_put_back(seed):
    """An old state is better on its old batch, and far worse on the last ones."""
    bare, _, _ = train(lambda: drifting(seed), with_r8=False)
    error, updates, said = train(lambda: drifting(seed), with_r8=True)

    assert "restored to step" not in said
    assert error < 4 * bare
    assert updates > 1450


@pytest.mark.parametrize("seed", [0, 1])
def test_another_domain_is_no_damage(seed):
    """So it is where all of the data are others at once, and losses rise further before they fall."""
    bare, _, _ = train(lambda: domains(seed), with_r8=False)
    error, _, said = train(lambda: domains(seed), with_r8=True)

    assert "restored to step" not in said
    assert error < 2 * bare


@pytest.mark.parametrize("seed", [2, 4])
def test_data_that_change_late_bring_no_untrained_model_back(seed):
    """That alone repeats its record then; of the others even a copy is worse than it was."""
    bare, all_updates, _ = train(lambda: mirrored(seed), with_r8=False, epochs=20)
    error, updates, said = train(lambda: mirrored(seed), with_r8=True, epochs=20)

    assert "restored to step" not in said
    assert updates > 0.98 * all_updates
    assert error < 1.2 * bare


def test_weights_that_are_hurt_are_put_back_although_data_may_change():
    """Then an earlier state is better on the last batches, too."""
    bare, _, _ = train(lambda: domains(0), with_r8=False)
    error, _, said = train(lambda: domains(0), with_r8=True, hurt_at=700)

    assert "the weights were damaged, restored to step" in said
    assert error < 2 * bare


@pytest.mark.parametrize("seed", [1, 4])
def test_a_rare_class_is_learned(seed):
    """Its batches are refused until it is clear that they are of a kind."""
    bare, all_updates, _ = train(lambda: rare(seed), with_r8=False, epochs=2)
    error, updates, _ = train(lambda: rare(seed), with_r8=True, epochs=2)

    assert error < 1.5 * bare
    assert updates > 0.98 * all_updates
