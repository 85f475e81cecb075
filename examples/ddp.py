"""ddp_plain.py under R8Scheduler: one scheduler for all ranks. With ``--spoil`` rank 1 meets a bad image on the way.

torchrun --nproc_per_node=2 examples/ddp.py [--spoil]
"""

import torch
import torch.distributed as dist
from ddp_parts import arguments, classifier, finish, load, print_accuracy
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from learnit_r8.torch import attach

BATCH_SIZE, LR = 64, 0.1

options = arguments()
dist.init_process_group("gloo")
torch.manual_seed(0)
train, test = load(options.spoil)

model = DistributedDataParallel(classifier())
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
adapter = attach(model, optimizer, train, batch_size=BATCH_SIZE, num_epochs=options.epochs)
loader = adapter.loader()

for epoch in range(options.epochs):
    for x, y in loader:
        adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
    print_accuracy(epoch, model, test)
finish(model, adapter.scheduler)
