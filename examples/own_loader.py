"""A training that keeps its loader, batches and schedule: bit for bit the same with R8, and healed after an accident.

python examples/own_loader.py

A stream of two kinds of spirals without a length, in batches of similar difficulty and changing size, with OneCycleLR.
It runs three times: without R8, with it, and with it after a NaN was written into the weights.
"""

from __future__ import annotations

import warnings

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from learnit_r8.torch import attach

STEPS = 600


class Spirals(IterableDataset):
    """Batches of points on two spirals, of 20 to 60 each."""

    def __iter__(self):
        while True:
            turn = torch.rand(int(torch.randint(20, 61, ())))
            label = torch.randint(0, 2, turn.shape)
            angle = 6 * turn + torch.pi * label
            yield torch.stack([turn * angle.cos(), turn * angle.sin()], 1) + 0.02 * torch.randn(len(turn), 2), label


def train(*, with_r8, has_accident=False):
    """Train on the stream; returns the model and the accuracy on new points."""
    torch.manual_seed(0)
    loader = DataLoader(Spirals(), batch_size=None)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS + 1)
    adapter = attach(model, optimizer, loader, num_steps=STEPS, also={"schedule": schedule}) if with_r8 else None
    for step, (x, y) in enumerate(adapter.batches() if adapter else loader):
        if step == STEPS:
            break
        if has_accident and step == STEPS // 2:
            model[0].weight.data[:] = float("nan")
        loss = cross_entropy(model(x), y)
        if adapter is None or adapter.report(loss):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if adapter:
        adapter.close()
    torch.manual_seed(1)
    points, labels = zip(*(batch for batch, _ in zip(Spirals(), range(50), strict=False)), strict=True)
    with torch.no_grad():
        accuracy = (model(torch.cat(points)).argmax(1) == torch.cat(labels)).float().mean().item()
    return model, accuracy


def main():
    plain, plain_accuracy = train(with_r8=False)
    watched, accuracy = train(with_r8=True)
    pairs = zip(plain.parameters(), watched.parameters(), strict=True)
    is_equal = all(torch.equal(one, other) for one, other in pairs)
    print(f"without R8: accuracy {plain_accuracy:.3f}")
    print(f"with R8:    accuracy {accuracy:.3f}, weights equal to the bit: {'yes' if is_equal else 'no'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, healed = train(with_r8=True, has_accident=True)
    print(f"with R8 and a NaN in the weights at step {STEPS // 2}: accuracy {healed:.3f}")


if __name__ == "__main__":
    main()
