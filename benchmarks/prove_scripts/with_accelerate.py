"""accelerate: accumulation, its own checkpoints, and the batches already done left out.

There is no dropout: it puts the generators back before a loader, which draws from them, begins its epoch again.

It goes on from ``state``. ``FAULT`` in the environment plants what is wrong with that.
"""

import json
import os
import shutil

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FAULT = os.environ.get("FAULT", "")
EPOCHS, EVERY = 3, 3 if FAULT == "accumulation" else 4

set_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
x = torch.randn(128, 8)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
schedule = plan if FAULT == "schedule" else accelerator.prepare(plan)
epoch = done = step = 0
first = loader
if os.path.exists("state"):
    accelerator.load_state("state")
    with open("state/place.json", encoding="utf-8") as file:
        epoch, done, step = json.load(file)
    if FAULT == "skipped":
        done += 2
    first = accelerator.skip_first_batches(loader, done)
for epoch in range(epoch, EPOCHS):  # noqa: B020, goes on in the epoch that it was in
    for xs, ys in first:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(xs), ys)
            accelerator.backward(loss)
            optimizer.step()
            if accelerator.sync_gradients or FAULT != "schedule":
                schedule.step()
            optimizer.zero_grad()
        step, done = step + 1, done + 1
        if step % EVERY == 0:
            accelerator.save_state("state.new")
            with open("state.new/place.json", "w", encoding="utf-8") as file:
                json.dump([epoch, done, step], file)
            shutil.rmtree("state", ignore_errors=True)
            os.rename("state.new", "state")
    done = 0
    if FAULT != "epoch":
        first = loader
print("finished", step, loss.item())
