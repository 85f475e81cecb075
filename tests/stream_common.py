"""What the tests of streams share."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


class Source:
    """Events without end; counts how many were asked for."""

    def __init__(self, **entries):
        self.pulled = 0
        self.entries = entries

    def __iter__(self):
        return self

    def __next__(self):
        self.pulled += 1
        return {"step": self.pulled, "loss": 1.0 / self.pulled, **self.entries}


def losses(*values):
    return [{"loss": value} for value in values]


def line(rows=64, *, noise=0.0):
    """Data on a line, a model that fits it, and its optimizer."""
    x = torch.linspace(-1, 1, rows)[:, None]
    y = 3 * x + 1 + noise * torch.randn(rows, 1)
    model = nn.Linear(1, 1)
    return (x, y), model, torch.optim.SGD(model.parameters(), lr=0.1)


class Weights:
    """A model as best() sees one."""

    def __init__(self, value=0.0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]
