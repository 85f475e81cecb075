"""A PyTorch script: batches, learning rate, recovery and checkpoints by attach().

python examples/tasks/torch_script.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from learnit_r8.torch import attach


def main() -> None:
    """Train a small network on points in the plane."""
    torch.manual_seed(0)
    x = torch.randn(2000, 2)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with attach(model, optimizer, TensorDataset(x, y), batch_size=50, num_epochs=10, policy="balanced") as adapter:
        for _ in adapter.epochs():
            for inputs, labels in adapter.loader(num_workers=0):
                adapter.step(adapter.loss(cross_entropy(model(inputs), labels, reduction="none")))
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean().item()
    print(f"accuracy {accuracy:.1%} after {adapter.scheduler.global_step} steps")


if __name__ == "__main__":
    main()
