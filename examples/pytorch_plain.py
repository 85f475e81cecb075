"""A plain PyTorch loop on scikit-learn's digits; ``diff`` it with pytorch_loop.py."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy

EPOCHS, BATCH_SIZE, LR = 15, 32, 0.05

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
images, test_images, labels, test_labels = train_test_split(images, torch.tensor(digits.target), random_state=0)

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)

for _ in range(EPOCHS):
    for batch in torch.randperm(len(labels)).split(BATCH_SIZE):
        loss = cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()

with torch.no_grad():
    accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
print(f"test accuracy {accuracy:.1%}")
