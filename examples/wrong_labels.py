"""Digits of which one label in five is wrong: who they are, and a training that leaves them out.

pip install ".[demo,torch]" && python examples/wrong_labels.py
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from learnit_r8 import Focus, R8Scheduler

NUM_TRAIN, WRONG_SHARE, EPOCHS, PEAK_LR = 1200, 0.2, 40, 0.1

rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.target))
images = torch.tensor(digits.data[order] / 16, dtype=torch.float32)
true_labels = digits.target[order]
is_wrong = rng.random(NUM_TRAIN) < WRONG_SHARE
given = np.where(is_wrong, (true_labels[:NUM_TRAIN] + rng.integers(1, 10, NUM_TRAIN)) % 10, true_labels[:NUM_TRAIN])
labels, test_labels = torch.from_numpy(given), torch.from_numpy(true_labels[NUM_TRAIN:])


def train(policy):
    """Accuracy on the test images, and the scheduler."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_LR, momentum=0.9)
    groups = given if policy != "shuffle" else None
    r8 = R8Scheduler(NUM_TRAIN, batch_size=32, num_epochs=EPOCHS, initial_lr=PEAK_LR, policy=policy, groups=groups)
    for _ in r8.epoch_iterator():
        for batch_indices, lr in r8.batch_iterator():
            rows = torch.from_numpy(batch_indices)
            losses = cross_entropy(model(images[rows]), labels[rows], reduction="none")
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            r8.update_with_loss(losses.detach().numpy())
    with torch.no_grad():
        right = model(images[NUM_TRAIN:]).argmax(1) == test_labels
    return 100 * float(right.float().mean()), r8


def main():
    torch.set_num_threads(1)
    plain, _ = train("shuffle")
    guarded, r8 = train(Focus(noise_guard=True))
    suspects = r8.table.suspects()
    found = is_wrong[suspects.indices]
    print(f"{is_wrong.sum()} of {NUM_TRAIN} labels are wrong; {len(found)} look wrong, {found.sum()} of them are")
    print("the most suspect:", ", ".join(f"#{index} says {given[index]}" for index in suspects.indices[:5]))
    print(f"test accuracy, plain shuffle:          {plain:.1f} %")
    print(f"test accuracy, as many visits, guard:  {guarded:.1f} %")


if __name__ == "__main__":
    main()
