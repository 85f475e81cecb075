"""Two ranks under DistributedDataParallel, for torchrun: dropout, running statistics, a gradient scaler.

Each rank goes on from its own file. ``FAULT`` in the environment plants what is wrong with that.
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

FAULT = os.environ.get("FAULT", "")
EPOCHS, EVERY = 3, 3

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
x = torch.randn(160, 8)
dataset = TensorDataset(x, (x.sum(1) > 0).long())
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
network = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=4)
sampler = DistributedSampler(dataset, seed=5)
loader = DataLoader(dataset, batch_size=8, sampler=sampler)
torch.manual_seed(rank)
epoch = done = step = 0
rng = None
if os.path.exists("ck-0.pt"):
    saved = torch.load(f"ck-{rank}.pt")
    model.load_state_dict(saved["model"], strict=FAULT != "buffers")
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    if FAULT != "scaler":
        scaler.load_state_dict(saved["scaler"])
    epoch, done, step, rng = (saved[name] for name in ("epoch", "done", "step", "rng"))
    if FAULT == "dropout":
        rng = torch.load("ck-0.pt")["rng"]
    if FAULT == "restarted":
        done = 0
    if FAULT == "twice":
        schedule.step()

skipped = done
while epoch < EPOCHS:
    sampler.set_epoch(epoch)
    batches = iter(loader)
    for _ in range(skipped):
        next(batches)
    if FAULT != "epoch":
        skipped = 0
    if rng is not None:
        torch.set_rng_state(rng)
        rng = None
    for xs, ys in batches:
        loss = nn.functional.cross_entropy(network(xs), ys)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        step, done = step + 1, done + 1
        if step % EVERY == 0:
            weights = dict(model.named_parameters()) if FAULT == "buffers" else model.state_dict()
            state = {"model": weights, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            state |= {"scaler": scaler.state_dict(), "epoch": epoch, "done": done, "step": step}
            torch.save(state | {"rng": torch.get_rng_state()}, f"ck-{rank}.tmp")
            os.replace(f"ck-{rank}.tmp", f"ck-{rank}.pt")
            dist.barrier()
    epoch, done = epoch + 1, 0
print("finished", step, loss.item())
dist.destroy_process_group()
