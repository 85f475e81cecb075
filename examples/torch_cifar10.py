"""torch_cifar10_plain.py under R8Scheduler: batches by loss, its own rate, backups, and a loss for every image.

python torch_cifar10.py [--data FOLDER] [--samples 5000] [--epochs 5]
"""

import torch
from cifar10_parts import Augmented, accuracy, arguments, as_is, load, resnet
from torch.nn.functional import cross_entropy

from learnit_r8.torch import attach

BATCH_SIZE, LR = 128, 0.1

options = arguments()
torch.manual_seed(0)
train, test = load(options.data, options.samples)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
half = torch.float16 if device.type == "cuda" else torch.bfloat16

data = Augmented(*train)
model = resnet(options.width).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
adapter = attach(model, optimizer, data, batch_size=BATCH_SIZE, num_epochs=options.epochs, scaler=scaler)
loader = adapter.loader(collate_fn=as_is, num_workers=2)

for epoch in range(options.epochs):
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast(device.type, half):
            loss = adapter.loss(cross_entropy(model(x), y, reduction="none"))
        adapter.step(loss)
    print(f"epoch {epoch + 1}: test accuracy {accuracy(model, *test, device):.1%}")
