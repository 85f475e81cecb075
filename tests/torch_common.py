"""Digits, a small model and the loops that the tests of the torch adapter share."""

import itertools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from learnit_r8 import R8Scheduler, Recovery
from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach

torch.set_num_threads(1)

_digits = load_digits()
X = torch.tensor(_digits.data[:200] / 16, dtype=torch.float32)
Y = torch.tensor(_digits.target[:200])
DIGITS = TensorDataset(X, Y)
STEPS = 13
"""In an epoch of the digits in batches of 16, the last of 8."""


def classifier(*, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 10)
    )


class NanGradient(torch.autograd.Function):
    """Leaves values as they are, and makes their gradient NaN."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


class Attention(torch.nn.Module):
    """Without any norm of queries and keys: at a high rate its losses explode again and again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.heads = torch.nn.Linear(8, 32), torch.nn.ModuleList(torch.nn.Linear(32, 96) for _ in range(3))
        self.last = torch.nn.Linear(32, 10)

    def forward(self, x):
        x = self.embed(x.view(-1, 8, 8))
        for head in self.heads:
            queries, keys, values = head(x).chunk(3, -1)
            x = x + (queries @ keys.transpose(1, 2)).softmax(-1) @ values
        return self.last(x.mean(1))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


class Killed(BaseException):
    """Stands for a process that ends at once."""


class Rows(torch.utils.data.Dataset):
    """The digits, with the index of each: what a loader handed out can be seen."""

    def __init__(self, count=200):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return X[index], Y[index], index


class ManyRows(Rows):
    """The same, a batch at a time."""

    def __getitems__(self, indices):
        return X[indices], Y[indices], torch.as_tensor(indices)


def as_is(batch):
    return batch


def no_steady(**changes):
    """Recovery that draws no batches out of turn, so that coverage can be counted."""
    return Recovery(steady_steps=0, **changes)


def adapted(dataset=None, *, model=None, optimizer=None, **settings):
    """An adapter of the digits: 2 epochs of 13 batches."""
    model = classifier() if model is None else model
    optimizer = sgd(model) if optimizer is None else optimizer
    settings = {"batch_size": 16, "num_epochs": 2, "policy": "shuffle", **settings}
    if "num_steps" in settings or "train_duration_seconds" in settings:
        del settings["num_epochs"]
    adapter = attach(model, optimizer, DIGITS if dataset is None else dataset, **grouped(settings))
    adapter.model = model
    return adapter


def descend(optimizer, loss):
    """A step of the optimizer."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(adapter, loader=None, *, epochs=None, nan_at=(), seen=None):
    """Train with ``step(loss(...))`` to the end of the budget; the outcomes."""
    loader = adapter.loader() if loader is None else loader
    outcomes = []
    for _ in adapter.epochs() if epochs is None else range(epochs):
        for x, y, *rest in loader:
            losses = cross_entropy(adapter.model(x), y, reduction="none")
            if len(outcomes) in nan_at:
                losses = losses * float("nan")
            if seen is not None:
                seen.append(rest[0].tolist())
            outcomes.append(adapter.step(adapter.loss(losses)))
    return outcomes


def learn(adapter, loss_of, *, batches=None, before=None):
    """A loop that takes its steps itself, where the loss of a batch is not refused; the outcomes.

    Args:
        loss_of: ``(*batch)``, one loss or those of samples.
        batches: What each epoch goes through, if not the adapter's own.
        before: ``(turn, *batch)``, called first with the number of batches so far; the batch in its place, or None.
    """
    outcomes = []
    for _ in adapter.epochs():
        for batch in adapter.batches() if batches is None else batches:
            batch = (before and before(len(outcomes), *batch)) or batch
            losses = loss_of(*batch)
            outcomes.append(adapter.report(losses))
            if outcomes[-1]:
                descend(adapter.optimizer, losses.mean())
    return outcomes


def weights(model):
    return np.concatenate([each.detach().numpy().ravel() for each in model.state_dict().values()])


def equal(one, two):
    """Whether two lists of tensors and numbers are equal to the bit."""
    return all(
        torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
        for first, second in zip(one, two, strict=True)
    )


def scheduler(num_samples=200, **settings):
    settings = {"batch_size": 16, "num_epochs": 2, "policy": "shuffle", **settings}
    return R8Scheduler(num_samples, **grouped(settings))


def together(batches):
    """One list of the samples in some batches."""
    return list(itertools.chain.from_iterable(batches))
