"""One fault of each of five kinds, for every way of training with torch: what each must be healed of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach

from .healing_common import X, Y

KINDS = ("nan batch", "nan weights", "large weights", "moments", "bad sample")
SOME_KINDS = [
    kind if kind in ("nan weights", "bad sample") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS
]
"""All kinds for tests that repeat what a quicker one has shown: one of the weights and one of the data by default."""

FAULT_STEP, NUM_STEPS, BATCH = 120, 360, 16
BAD_SAMPLE = 77
HEALED = 0.1
"""The loss of a model that was healed; the variance of the noise in the targets, that of the best one, is 0.09."""

torch.set_num_threads(1)


class Samples(torch.utils.data.Dataset):
    """Rows of a regression; one of them may be bad."""

    def __init__(self, kind=None):
        self._is_bad = kind == "bad sample"

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        x = torch.from_numpy(X[index])
        return (x * float("nan") if self._is_bad and index == BAD_SAMPLE else x), torch.from_numpy(Y[index])


class Fault:
    """A fault of one kind, once, at a batch that is trained on.

    Args:
        kind: One of `KINDS`.
        step: When.
    """

    def __init__(self, kind, step=FAULT_STEP):
        self._kind, self._left = kind, step

    def strike(self, model, optimizer, x):
        """Called before each batch with its inputs; returns those to train on."""
        self._left -= 1
        if self._left:
            return x
        with torch.no_grad():
            if self._kind == "nan batch":
                return x * float("nan")
            if self._kind == "nan weights":
                next(iter(model.parameters()))[0, 0] = float("nan")
            elif self._kind == "large weights":
                for each in model.parameters():
                    each.mul_(30.0)
            elif self._kind == "moments":
                for state in optimizer.state.values():
                    state["exp_avg"].fill_(1e3)
        return x


def linear():
    """The model and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.05), torch.nn.Linear(8, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def settings_of(accumulate=1):
    """Settings for the scheduler."""
    return {"num_steps": NUM_STEPS * accumulate, "policy": "shuffle", "backup_every": 20}


def train(kind, *, workers=0, accumulate=1, is_exact=True, wrap=lambda model: model, strikes=True, **settings):
    """A training that a fault strikes: the adapter and the loss of the model at its end."""
    plain, optimizer = linear()
    model = wrap(plain)
    given = {**settings_of(accumulate), **settings}
    adapter = attach(model, optimizer, Samples(kind), batch_size=BATCH, accumulate=accumulate, **grouped(given))
    fault = Fault(kind if strikes else None, FAULT_STEP * accumulate)
    loader = adapter.loader(num_workers=workers, persistent_workers=workers > 0)
    with adapter:
        for _ in adapter.epochs():
            for x, y in loader:
                losses = mse_loss(model(fault.strike(plain, optimizer, x)), y, reduction="none").mean(1)
                adapter.step(adapter.loss(losses if is_exact else losses.mean()))
    return adapter, loss_of(plain)


def loss_of(model):
    """The loss on all good samples, without dropout."""
    model.eval()
    with torch.no_grad():
        return float(np.mean((model(torch.from_numpy(X)).numpy() - Y) ** 2))
