"""The scikit-learn digits with accelerate: its own checkpoint holds the scheduler too."""

import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from learnit_r8.torch import attach

digits = load_digits()
dataset = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
folder = sys.argv[1] if len(sys.argv) > 1 else None
"""Where to save after 40 steps; with a second word, "load", where to go on from."""

torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(32, 10))
model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9))
adapter = attach(model, optimizer, dataset, batch_size=64, num_epochs=3)
loader, rates = accelerator.prepare(adapter.loader(), adapter.lr_scheduler)
if "load" in sys.argv:
    accelerator.load_state(folder)

num_done = 0
for _epoch in adapter.epochs():
    for x, y in loader:
        loss = adapter.loss(cross_entropy(model(x), y, reduction="none"))
        if adapter.report():
            accelerator.backward(loss)
            optimizer.step()
            rates.step()
        optimizer.zero_grad()
        # On several processes losses are reported a few steps later, so the scheduler's own count is behind.
        num_done += 1
        if folder is not None and "load" not in sys.argv and num_done == 40:
            accelerator.save_state(folder)
adapter.close()
weights = sum(each.double().sum().item() for each in net.parameters())
print(f"{adapter.scheduler.global_step} steps, weights {weights!r}, losses {adapter.table.loss.sum()!r}")
