"""Lightning's Trainer: an R8Loader, and loaders of one's own beside R8Callback."""

from __future__ import annotations

import logging
import tempfile
from typing import ClassVar

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from learnit_r8.lightning import R8Callback, R8Loader
from learnit_r8.lightning import cross_entropy as r8_cross_entropy

from . import task
from .columns_torch import Network, Rows, hurt, own_loader, read_weights, sgd, write_down

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Module(lightning.LightningModule):
    """The network and its steps, as a user writes them."""

    def __init__(self, run, *, exact):
        super().__init__()
        self.run, self.exact, self.network = run, exact, Network(run.case.activation)
        self.mean, self.counted = MeanMetric(nan_strategy="disable"), []

    def configure_optimizers(self):
        return sgd(self.network)

    def on_train_batch_start(self, batch, batch_idx):
        hurt(self.run, self.network)
        if self.run.rate is not None:
            self.optimizers().param_groups[0]["lr"] = self.run.rate

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.network(x)
        losses = r8_cross_entropy(logits, y) if self.exact else cross_entropy(logits, y)
        if self.run.leaves_out and not losses.isfinite():
            return None
        self.counted.append(float(losses["loss"] if self.exact else losses))
        self.mean.update(self.counted[-1])
        self.log("loss", losses["loss"] if self.exact else losses, on_step=False, on_epoch=True)
        return losses

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", cross_entropy(self.network(x), y))


class Notes(lightning.Callback):
    """User code at the end of each epoch."""

    def on_train_epoch_end(self, trainer, module):
        logged = {name: float(trainer.callback_metrics[name]) for name in ("loss", "val_loss")}
        module.run.end_epoch(read_weights(module.network), **logged)
        module.run.counted.append([*module.counted, float(module.mean.compute())])
        module.counted.clear()
        module.mean.reset()


class Lightning:
    """An R8Loader."""

    own = False
    options: ClassVar = {}

    def train(self, run):
        settings = {"batch_size": task.BATCH, **task.CONSTANT, **run.settings}
        loader = R8Loader(Rows(run), **settings)
        callback = R8Callback(loader)
        self.fit(run, loader, callback)
        run.r8 = callback.scheduler

    def plain(self, run):
        self.fit(run, own_loader(run))

    def fit(self, run, loader, callback=None):
        torch.manual_seed(0)
        module = Module(run, exact=not self.own and callback is not None)
        folder = run.case.folder or tempfile.mkdtemp()
        best = ModelCheckpoint(folder, filename="best", monitor="val_loss")
        keepers = [best]
        if run.case.folder:
            # Resumed twice from those that are due by steps as an epoch ends, Lightning itself trains an epoch more.
            by_epochs = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
            when = by_epochs if run.case.every == task.STEPS else {"every_n_train_steps": run.case.every}
            keepers.append(ModelCheckpoint(folder, filename="newest", enable_version_counter=False, **when))
        others = [Notes(), *keepers]
        callbacks = others if callback is None else [*others, callback] if run.case.r8_last else [callback, *others]
        trainer = lightning.Trainer(max_epochs=run.case.epochs, callbacks=callbacks, **QUIET, **self.options)
        validation = DataLoader(TensorDataset(torch.from_numpy(task.VAL_X), torch.from_numpy(task.VAL_Y)), 128)
        newest = run.case.folder and run.case.folder / "newest.ckpt"
        trainer.fit(module, loader, validation, ckpt_path=newest if newest and newest.exists() else None)
        write_down(run, module.network, module.optimizers().optimizer)
        module.load_state_dict(torch.load(best.best_model_path, weights_only=False)["state_dict"])
        run.best = read_weights(module.network)


class LightningOwn(Lightning):
    """A DataLoader of one's own."""

    own = True

    def train(self, run):
        callback = R8Callback(**run.settings)
        self.fit(run, own_loader(run), callback)
        run.r8 = callback.scheduler


COLUMNS = {"lightning": Lightning, "lightning own": LightningOwn}
