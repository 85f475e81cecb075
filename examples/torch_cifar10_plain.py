"""A small ResNet on CIFAR-10 with PyTorch alone; ``diff`` it with torch_cifar10.py.

python torch_cifar10_plain.py [--data FOLDER] [--samples 5000] [--epochs 5]
"""

import torch
from cifar10_parts import Augmented, accuracy, arguments, as_is, load, resnet
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

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
loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, collate_fn=as_is, num_workers=2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=options.epochs * len(loader))

for epoch in range(options.epochs):
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        with torch.autocast(device.type, half):
            loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    print(f"epoch {epoch + 1}: test accuracy {accuracy(model, *test, device):.1%}")
