"""A plain loop on several processes; ddp.py is the same one under R8Scheduler.

torchrun --nproc_per_node=2 examples/ddp_plain.py
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

EPOCHS, BATCH_SIZE, LR = 15, 64, 0.1

dist.init_process_group("gloo")
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
images, test_images, labels, test_labels = train_test_split(images, torch.tensor(digits.target), random_state=0)
dataset = TensorDataset(images, labels)

model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size=BATCH_SIZE // dist.get_world_size(), sampler=sampler)

for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)
    for xs, ys in loader:
        loss = cross_entropy(model(xs), ys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

if dist.get_rank() == 0:
    with torch.no_grad():
        accuracy = (model.module(test_images).argmax(1) == test_labels).float().mean().item()
    print(f"test accuracy {accuracy:.1%}")
dist.destroy_process_group()
