"""The loop of ddp_plain.py under R8Scheduler, on any number of processes; rank 1 meets a bad batch on the way.

torchrun --nproc_per_node=2 examples/ddp.py
"""

import hashlib

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from learnit_r8.torch import attach

EPOCHS, BATCH_SIZE, LR = 15, 64, 0.1

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
images, test_images, labels, test_labels = train_test_split(images, torch.tensor(digits.target), random_state=0)
dataset = TensorDataset(images, labels)

model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
r8 = attach(model, optimizer, dataset, batch_size=BATCH_SIZE, num_epochs=EPOCHS)

steps = 0
for _ in r8.epochs():
    for xs, ys in r8.loader():
        losses = cross_entropy(model(xs), ys, reduction="none")
        steps += 1
        if steps == 150 and rank == 1:
            losses = losses * float("nan")
        r8.step(r8.loss(losses))
r8.close()

# Every rank knows the same of every sample, and has the same model.
digest = hashlib.sha256(r8.scheduler.table.loss.tobytes() + b"".join(p.detach().numpy() for p in model.parameters()))
digests = [""] * size
dist.all_gather_object(digests, digest.hexdigest())
if rank == 0:
    with torch.no_grad():
        accuracy = (model.module(test_images).argmax(1) == test_labels).float().mean().item()
    print(f"{size} ranks, {r8.scheduler.global_step} steps, losses refused: {r8.scheduler.sentry.num_refused}")
    print(f"tables and models of all ranks are equal: {len(set(digests)) == 1}")
    print(f"test accuracy {accuracy:.1%}")
dist.destroy_process_group()
