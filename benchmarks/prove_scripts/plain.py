"""A plain loop: images with augmentation, a network with running statistics, an average of the weights.

It goes on from ``ck.pt``. ``FAULT`` in the environment plants what is wrong with that.
"""

import os

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Subset

FAULT = os.environ.get("FAULT", "")
EPOCHS, BATCH, EVERY = 3, 8, 4

torch.manual_seed(0)


class Images(Dataset):
    """Noise with a bright corner for one class, shifted by chance."""

    def __init__(self, size):
        self.x = torch.randn(size, 1, 8, 8)
        self.y = torch.arange(size) % 2
        self.x[self.y == 1, :, :3, :3] += 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index].roll(int(torch.randint(0, 6, ())), -1), self.y[index]


data = Images(96)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(data) // BATCH)
epoch = done = step = resumes = 0
rng = None

path = "ck.pt"
if FAULT == "older" and os.path.exists(path):
    # By name "ck-8" comes after "ck-12".
    path = max(name for name in os.listdir() if name.startswith("ck-"))
if os.path.exists(path):
    saved = torch.load(path)
    model.load_state_dict(saved["model"], strict=FAULT != "buffers")
    if FAULT != "moments":
        optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    if FAULT != "ema":
        ema.load_state_dict(saved["ema"])
    epoch, done, step, resumes, rng = (saved[name] for name in ("epoch", "done", "step", "resumes", "rng"))
    resumes += 1
    if FAULT == "restarted":
        done = 0
    if FAULT == "skipped" or (FAULT == "second" and resumes > 1):
        done += 1
    if FAULT == "twice":
        schedule.step()
    if FAULT == "augmentation":
        rng = None


def save():
    """Write the checkpoint, whole or not at all."""
    weights = dict(model.named_parameters()) if FAULT == "buffers" else model.state_dict()
    state = {"model": weights, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    state |= {"ema": ema.state_dict(), "epoch": epoch, "done": done, "step": step, "resumes": resumes}
    torch.save(state | {"rng": torch.get_rng_state()}, "ck.tmp")
    if FAULT == "older":
        torch.save(state | {"rng": torch.get_rng_state()}, f"ck-{step}.pt")
    os.replace("ck.tmp", "ck.pt")


while epoch < EPOCHS:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch)).tolist()
    batches = iter(DataLoader(Subset(data, order[done * BATCH :]), batch_size=BATCH))
    if rng is not None:
        torch.set_rng_state(rng)
        rng = None
    for x, y in batches:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        ema.update_parameters(model)
        step += 1
        done += 1
        if step % EVERY == 0:
            save()
    epoch, done = epoch + 1, 0
print("finished", step, loss.item())
