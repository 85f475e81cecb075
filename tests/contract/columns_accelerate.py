"""accelerate: R8's batches, and a prepared loader of one's own."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from learnit_r8.torch import attach

from . import task
from .columns_torch import Network, Rows, hurt, own_loader, read_weights, sgd, validate, write_down


class Accelerate:
    """R8's batches, whose loader and rates are prepared."""

    own = False

    def train(self, run):
        accelerator, network, model, optimizer = self.build(run)
        settings = {"batch_size": task.BATCH, "num_epochs": run.case.epochs, **task.CONSTANT, **run.settings}
        adapter = attach(model, optimizer, Rows(run), **settings, **run.files)
        run.r8 = adapter.scheduler
        loader, rates = accelerator.prepare(adapter.loader(), adapter.lr_scheduler)
        with adapter:
            for _ in adapter.epochs():
                for x, y in loader:
                    hurt(run, network)
                    loss = adapter.loss(cross_entropy(model(x), y, reduction="none"))
                    if adapter.report():
                        accelerator.backward(loss)
                        optimizer.step()
                        rates.step()
                    optimizer.zero_grad()
                run.end_epoch(read_weights(network), val_loss=validate(network))
        write_down(run, network, optimizer)

    def plain(self, run):
        accelerator, network, model, optimizer = self.build(run)
        loader = accelerator.prepare(own_loader(run))
        for _ in range(run.case.epochs):
            for x, y in loader:
                hurt(run, network)
                optimizer.param_groups[0]["lr"] = run.rate or task.RATE
                loss = cross_entropy(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            run.end_epoch(read_weights(network), val_loss=validate(network))
        write_down(run, network, optimizer)

    def build(self, run):
        torch.manual_seed(0)
        network = Network(run.case.activation)
        accelerator = Accelerator(cpu=True)
        return accelerator, network, *accelerator.prepare(network, sgd(network))


class AccelerateOwn(Accelerate):
    """A prepared DataLoader, and the script's own rate."""

    own = True

    def train(self, run):
        accelerator, network, model, optimizer = self.build(run)
        loader = accelerator.prepare(own_loader(run))
        adapter = attach(model, optimizer, loader, num_epochs=run.case.epochs, **run.settings, **run.files)
        run.r8 = adapter.scheduler
        with adapter:
            for _ in adapter.epochs():
                for x, y in adapter.batches():
                    hurt(run, network)
                    loss = cross_entropy(model(x), y)
                    if adapter.report(loss):
                        accelerator.backward(loss)
                        optimizer.step()
                    optimizer.zero_grad()
                run.end_epoch(read_weights(network), val_loss=validate(network))
        write_down(run, network, optimizer)


COLUMNS = {"accelerate": Accelerate, "accelerate own": AccelerateOwn}
