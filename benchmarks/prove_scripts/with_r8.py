"""R8 alone: batches that it draws, or with ``own`` those of a loader; it goes on from its own checkpoints.

With ``workers`` the loader has two of them, with ``stream`` it reads a stream; with ``ranks`` torchrun starts it twice.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from learnit_r8 import OwnBatches
from learnit_r8.torch import attach

torch.manual_seed(0)
x = torch.randn(256, 8)
data = TensorDataset(x, (x.sum(1) > 0).long())
has_own = bool({"own", "workers", "stream"} & set(sys.argv))


class Stream(IterableDataset):
    """The same samples, one after the other."""

    def __iter__(self):
        return iter(data)


if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    if "ranks" in sys.argv:
        dist.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    settings = {"num_epochs": 2, "checkpoint_dir": "saved", "checkpoint_every": 5, "resume": "auto"}
    if has_own:
        kind = {"dataset": Stream()} if "stream" in sys.argv else {"dataset": data, "shuffle": True}
        loader = DataLoader(batch_size=16, num_workers=2 * ("workers" in sys.argv), **kind)
        more = {"batch_size": OwnBatches(steps_per_epoch=16)} if "stream" in sys.argv else {}
        r8 = attach(model, optimizer, loader, **settings, **more)
    else:
        r8 = attach(model, optimizer, data, batch_size=16, **settings)
    for _ in r8.epochs():
        for xs, ys in r8 if has_own else r8.loader():
            r8.step(r8.loss(nn.functional.cross_entropy(model(xs), ys, reduction="none")))
    r8.close()
    if "ranks" in sys.argv:
        dist.destroy_process_group()
