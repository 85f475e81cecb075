"""R8 alone: batches that it draws, or with ``own`` those of a loader; it goes on from its own checkpoints."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8.torch import attach

torch.manual_seed(0)
x = torch.randn(256, 8)
data = TensorDataset(x, (x.sum(1) > 0).long())
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
settings = {"num_epochs": 2, "checkpoint_dir": "saved", "checkpoint_every": 5, "resume": "auto"}
if "own" in sys.argv:
    r8 = attach(model, optimizer, DataLoader(data, batch_size=16, shuffle=True), **settings)
else:
    r8 = attach(model, optimizer, data, batch_size=16, **settings)
for _ in r8.epochs():
    for xs, ys in r8 if "own" in sys.argv else r8.loader():
        r8.step(r8.loss(nn.functional.cross_entropy(model(xs), ys, reduction="none")))
r8.close()
