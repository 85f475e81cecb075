"""A stream that two workers read, with augmentation in them; it is read again up to where the training was.

It goes on from ``ck.pt``. ``FAULT`` in the environment plants what is wrong with that.
"""

import itertools
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

FAULT = os.environ.get("FAULT", "")
EVERY = 5

torch.manual_seed(0)


class Records(IterableDataset):
    """Records that are made as they are read, every second one by each worker."""

    def __iter__(self):
        worker = get_worker_info()
        for number in range(worker.id, 320, worker.num_workers):
            x = torch.randn(8, generator=torch.Generator().manual_seed(number))
            yield x + 0.1 * torch.randn(8), (x.sum() > 0).long()


if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    done = 0
    # The seed of the workers comes from here.
    torch.manual_seed(1)
    if os.path.exists("ck.pt"):
        saved = torch.load("ck.pt")
        model.load_state_dict(saved["model"])
        if FAULT != "moments":
            optimizer.load_state_dict(saved["optimizer"])
        done = saved["done"]
        if FAULT == "augmentation":
            torch.set_rng_state(saved["rng"])
    begin = {"restarted": 0, "repeated": done - 2, "skipped": done + 2}.get(FAULT, done) if done else 0
    loader = DataLoader(Records(), batch_size=8, num_workers=2)
    for x, y in itertools.islice(loader, begin, None):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        if done % EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
            torch.save(state | {"rng": torch.get_rng_state()}, "ck.tmp")
            os.replace("ck.tmp", "ck.pt")
    print("finished", done, loss.item())
