"""The loop of pytorch_plain.py under R8Scheduler: backups, checkpoints, and a loss for every sample."""

import tempfile

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy

from learnit_r8 import R8Scheduler

EPOCHS, BATCH_SIZE, LR = 15, 32, 0.05

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
images, test_images, labels, test_labels = train_test_split(images, torch.tensor(digits.target), random_state=0)

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)


def load(source, from_ram):
    saved = source if from_ram else torch.load(source)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])


with (
    tempfile.TemporaryDirectory() as folder,
    R8Scheduler(
        len(labels),
        batch_size=BATCH_SIZE,
        num_epochs=EPOCHS,
        initial_lr=LR,
        state_callback=lambda: {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
        save_callback=lambda state_dict, filepath: torch.save(state_dict["model"], filepath),
        load_callback=load,
        backup_every=50,
        checkpoint_dir=folder,
    ) as r8,
):
    for _ in r8.epoch_iterator():
        for batch, lr in r8.batch_iterator():
            losses = cross_entropy(model(images[batch]), labels[batch], reduction="none")
            if not r8.update_with_loss(losses):
                continue
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()

with torch.no_grad():
    accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
print(f"test accuracy {accuracy:.1%}")
