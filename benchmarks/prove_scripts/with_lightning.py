"""Lightning: an epoch at a time, with a callback that keeps an average, and an order that is keyed by the epoch.

It goes on from ``saved/last.ckpt``. ``FAULT`` in the environment plants what is wrong with that.
"""

import os
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

FAULT = os.environ.get("FAULT", "")
warnings.simplefilter("ignore")
torch.manual_seed(0)


class Shuffled(Sampler):
    """An order for each epoch, which Lightning names."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 64

    def __iter__(self):
        return iter(torch.randperm(64, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Model(lightning.LightningModule):
    """A small network with dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
        self.batches = 0

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def on_train_batch_start(self, batch, number):
        # Lightning saves no random generators.
        if FAULT != "dropout":
            torch.manual_seed(1000 * self.current_epoch + number)
        # What counts here is not in the checkpoint.
        self.batches += 1
        if FAULT == "schedule":
            self.optimizers().param_groups[0]["lr"] = 1e-2 / (1 + 0.1 * self.batches)

    def on_load_checkpoint(self, checkpoint):
        if FAULT == "moments":
            checkpoint["optimizer_states"][0]["state"] = {}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Average(Callback):
    """Keeps an average of the weights."""

    def on_fit_start(self, trainer, module):
        if not hasattr(self, "weights"):
            self.weights = [each.detach().clone() for each in module.parameters()]

    def on_train_batch_end(self, trainer, module, *_):
        for mine, each in zip(self.weights, module.parameters(), strict=True):
            mine.lerp_(each.detach(), 0.1)

    def state_dict(self):
        return {} if FAULT == "ema" else {"weights": self.weights}

    def load_state_dict(self, state):
        if state:
            self.weights = state["weights"]


x = torch.randn(64, 8)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, sampler=Shuffled())
trainer = lightning.Trainer(
    max_epochs=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[ModelCheckpoint("saved", save_last=True, filename="{epoch}"), Average()], use_distributed_sampler=False,
)  # fmt: skip
trainer.fit(Model(), loader, ckpt_path="saved/last.ckpt" if os.path.exists("saved/last.ckpt") else None)
