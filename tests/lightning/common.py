"""A small training with Lightning on the digits, and what came of it."""

import hashlib
import logging

import lightning
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from learnit_r8.lightning import R8Callback, R8Loader
from learnit_r8.lightning import cross_entropy as r8_cross_entropy

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

_DIGITS = load_digits()
DATA = TensorDataset(torch.tensor(_DIGITS.data[:400] / 16, dtype=torch.float32), torch.tensor(_DIGITS.target[:400]))
STEPS = 13
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Digits(lightning.LightningModule):
    """A classifier with dropout, which draws from the random generators.

    Args:
        exact: Whether it returns the losses of samples.
        predicts: Whether it returns predictions with these.
        bad: Numbers of training steps whose loss is NaN.
    """

    def __init__(self, *, exact=True, predicts=True, bad=()):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 10)
        )
        self.exact, self.predicts, self.bad, self.calls = exact, predicts, bad, 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)

    def training_step(self, batch, _):
        x, y = batch
        logits = self.net(x)
        if self.calls in self.bad:
            logits = logits * float("nan")
        self.calls += 1
        if self.exact and self.predicts:
            return r8_cross_entropy(logits, y)
        losses = cross_entropy(logits, y, reduction="none")
        return {"loss": losses.mean(), "losses": losses.detach()} if self.exact else losses.mean()


class Broken(Digits):
    """With a loss of NaN at some steps of the run, however often it was resumed.

    Args:
        now: ``()``, the step.
        steps: Those.
    """

    def __init__(self, now, steps):
        super().__init__()
        self.now, self.steps = now, steps

    def training_step(self, batch, index):
        self.bad = [self.calls] if self.now() in self.steps else []
        return super().training_step(batch, index)


class Checkpoints(lightning.Callback):
    """Saves a checkpoint of Lightning's after some steps."""

    def __init__(self, path, steps):
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer, *_):
        if self.seen(trainer) in self.steps:
            trainer.save_checkpoint(f"{self.path}/{self.seen(trainer)}.ckpt")

    def seen(self, trainer):
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def fit(*, module=None, ckpt_path=None, more=(), loader=None, epochs=3, settings=None, **trainer):
    """A training: ``(module, scheduler, trainer)``."""
    torch.manual_seed(0)
    module = Digits() if module is None else module
    loader = R8Loader(DATA, batch_size=32, **(settings or {})) if loader is None else loader
    options = {"max_epochs": epochs, "enable_checkpointing": False, **QUIET, **trainer}
    trainer = lightning.Trainer(callbacks=[R8Callback(loader), *more], **options)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module, loader.scheduler, trainer


def digest(module, r8):
    """Of the weights and the table, bit by bit."""
    found = hashlib.blake2b(digest_size=8)
    if r8.table.storage.evidence.whole is not None:
        r8.table.learner.hand_over()
        found.update(r8.table.storage.evidence.whole.tobytes())
    for each in module.parameters():
        found.update(each.detach().numpy().tobytes())
    for column in (r8.table.loss, r8.table.last, r8.table.usage_count):
        found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest(), r8.global_step
