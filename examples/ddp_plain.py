"""A training on several processes with PyTorch alone; ``diff`` it with ddp.py.

torchrun --nproc_per_node=2 examples/ddp_plain.py [--spoil]
"""

import torch
import torch.distributed as dist
from ddp_parts import arguments, classifier, finish, load, print_accuracy
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

BATCH_SIZE, LR = 64, 0.1

options = arguments()
dist.init_process_group("gloo")
torch.manual_seed(0)
train, test = load(options.spoil)

model = DistributedDataParallel(classifier())
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
sampler = DistributedSampler(train)
loader = DataLoader(train, batch_size=BATCH_SIZE // dist.get_world_size(), sampler=sampler)

for epoch in range(options.epochs):
    sampler.set_epoch(epoch)
    for x, y in loader:
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print_accuracy(epoch, model, test)
finish(model)
