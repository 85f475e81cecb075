"""Small trainings with Trainer on the digits and on tokens."""

import hashlib
import logging

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from learnit_r8.transformers import R8Mixin

logging.getLogger("transformers").setLevel(logging.ERROR)

_DIGITS = load_digits()
IMAGES = torch.tensor(_DIGITS.data[:400] / 16, dtype=torch.float32)
LABELS = torch.tensor(_DIGITS.target[:400])
STEPS = 13


class Digits(Dataset):
    """The digits as Trainer takes them."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return {"images": IMAGES[index], "labels": LABELS[index]}


class Model(torch.nn.Module):
    """A classifier with dropout; its logits are NaN at some calls in training."""

    def __init__(self, bad=()):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 10)
        )
        self.bad, self.calls = bad, 0

    def forward(self, images, labels=None):
        logits = self.net(images)
        if self.training:
            if self.calls in self.bad:
                logits = logits * float("nan")
            self.calls += 1
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class R8Trainer(R8Mixin, Trainer):
    pass


def arguments(folder, **more):
    options = {
        "output_dir": str(folder), "num_train_epochs": 3, "per_device_train_batch_size": 32, "learning_rate": 0.01,
        "use_cpu": True, "report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(**{**options, **more})


def train(folder, *, model=None, resume=None, r8=None, trainer=R8Trainer, parts=None, **more):
    """A training; returns the Trainer."""
    args = arguments(folder, **more)
    torch.manual_seed(0)
    model = Model() if model is None else model
    done = trainer(model=model, args=args, train_dataset=Digits(), r8=r8, **(parts or {}))
    done.train(resume_from_checkpoint=resume)
    return done


def digest(trainer):
    """Of the weights and the table, bit by bit."""
    table, found = trainer.r8.scheduler.table, hashlib.blake2b(digest_size=8)
    if table.storage.evidence.whole is not None:
        table.learner.hand_over()
        found.update(table.storage.evidence.whole.tobytes())
    for each in trainer.model.parameters():
        found.update(each.detach().numpy().tobytes())
    for column in (table.loss, table.last, table.usage_count):
        found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest(), trainer.r8.scheduler.global_step
