"""Trainer as it is, or with ``r8`` with R8 in it: it goes on from the newest of its own checkpoints."""

import os
import sys

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from learnit_r8.transformers import R8Mixin

torch.manual_seed(0)
x = torch.randn(128, 8)


class Model(nn.Module):
    """A small network with dropout that returns its loss."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    def forward(self, images, labels):
        logits = self.net(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class R8Trainer(R8Mixin, Trainer):
    """Trainer with R8."""


arguments = TrainingArguments(
    output_dir="saved", num_train_epochs=3, per_device_train_batch_size=8, learning_rate=0.01, use_cpu=True,
    report_to=[], save_steps=5, disable_tqdm=True,
)  # fmt: skip
kind = R8Trainer if "r8" in sys.argv else Trainer
samples = [{"images": each, "labels": int(each.sum() > 0)} for each in x]
trainer = kind(model=Model(), args=arguments, train_dataset=samples)
has_one = os.path.isdir("saved") and any(name.startswith("checkpoint-") for name in os.listdir("saved"))
trainer.train(resume_from_checkpoint=True if has_one else None)
