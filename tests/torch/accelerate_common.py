"""A small training with accelerate on the digits, and what came of it."""

import hashlib
import warnings

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from learnit_r8.torch import attach

_DIGITS = load_digits()
DATA = TensorDataset(torch.tensor(_DIGITS.data[:400] / 16, dtype=torch.float32), torch.tensor(_DIGITS.target[:400]))
STEPS = 13


class Training:
    """A training of three epochs.

    Args:
        accumulate: Batches of a step.
        workers: Processes that load.
        bad: Batches whose losses are NaN on the last rank, by number.
    """

    def __init__(self, *, accumulate=1, workers=0, bad=(), prepare_first=True, **settings):
        torch.manual_seed(0)
        self.bad, self.seen = bad, 0
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        net = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(32, 10)
        )
        self.net, optimizer = net, torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
        prepare = self.accelerator.prepare
        if prepare_first:
            self.model, self.optimizer = prepare(net, optimizer)
        given = (self.model, self.optimizer) if prepare_first else (net, optimizer)
        settings = {"batch_size": 32, "num_epochs": 3, "accumulate": accumulate, **settings}
        self.adapter = attach(*given, DATA, **settings)
        if not prepare_first:
            self.model, self.optimizer = prepare(net, optimizer)
        self.loader, self.rates = prepare(self.adapter.loader(num_workers=workers), self.adapter.lr_scheduler)
        self.steps = []

    def run(self, folder=None, at=()):
        """Train to the end; save by accelerate after some batches, in ``folder``."""
        accelerator, adapter = self.accelerator, self.adapter
        for _epoch in adapter.epochs():
            for x, y in self.loader:
                with accelerator.accumulate(self.model):
                    loss = adapter.loss(self.losses(x, y))
                    if adapter.report():
                        accelerator.backward(loss)
                        self.optimizer.step()
                        self.rates.step()
                    self.optimizer.zero_grad()
                self.steps.append(accelerator.sync_gradients)
                if self.seen in at:
                    accelerator.save_state(f"{folder}/{self.seen}")
        adapter.close()
        return self

    def losses(self, x, y):
        losses = cross_entropy(self.model(x), y, reduction="none")
        is_bad = self.seen in self.bad and self.accelerator.is_last_process
        self.seen += 1
        return losses * float("nan") if is_bad else losses

    def resume(self, path):
        """Load what accelerate saved."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.accelerator.load_state(path)
        return self

    def digest(self):
        """Of the weights and the table, bit by bit, and the steps."""
        r8, found = self.adapter.scheduler, hashlib.blake2b(digest_size=8)
        for each in self.net.parameters():
            found.update(each.detach().numpy().tobytes())
        for column in (r8.table.loss, r8.table.last, r8.table.usage_count):
            found.update(np.ascontiguousarray(column).tobytes())
        return found.hexdigest(), r8.global_step
