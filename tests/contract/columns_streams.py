"""The other ways to drive R8's batches: `epoch_stream` in torch, and a loop of callbacks in numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from learnit_r8 import R8Scheduler
from learnit_r8.loops import every, logs, loop, report_to, scheduled
from learnit_r8.streams import epoch_stream

from . import task
from .columns_numpy import Numpy
from .columns_torch import Attach, Network, hurt, read_weights, sgd, validate, write_down


class Watched(Network):
    """The network; the data are in memory, so a bad batch is made as it comes in."""

    def __init__(self, run):
        super().__init__(run.case.activation)
        self.run = run
        self.rows = {each.tobytes(): at for at, each in enumerate(run.samples()[0])}

    def forward(self, x):
        if self.training:
            number = len(self.run.draws)
            hurt(self.run, self)
            self.run.draws.append([self.rows[each.tobytes()] for each in x.numpy()])
            x = x * self.run.case.batch_faults.get(number, 1.0)
        return super().forward(x)


class EpochStream(Attach):
    """`epoch_stream` with a scheduler."""

    def train(self, run):
        torch.manual_seed(0)
        network = Watched(run)
        optimizer = sgd(network)
        given = {"batch_size": task.BATCH, "initial_lr": task.RATE, **task.CONSTANT, **run.settings, **run.files}
        run.r8 = r8 = R8Scheduler(task.NUM_SAMPLES, num_epochs=run.case.epochs, **given)
        data = tuple(map(torch.from_numpy, run.samples()))
        with r8:
            for event in epoch_stream(data, network, optimizer, cross_entropy, scheduler=r8):
                network.eval()
                run.end_epoch(read_weights(network), val_loss=validate(network), loss=event["train_loss"])
        write_down(run, network, optimizer)


class Loops(Numpy):
    """A `loop` over `scheduled` batches, whose state is a dictionary of arrays."""

    def train(self, run):
        given = {"batch_size": task.BATCH, "initial_lr": task.RATE, **task.CONSTANT, **run.settings, **run.files}
        run.r8 = r8 = R8Scheduler(task.NUM_SAMPLES, num_epochs=run.case.epochs, **given)
        start = {f"weights.{name}": each for name, each in task.first_weights().items()}
        start |= {f"speed.{name}": 0 * each for name, each in task.first_weights().items()}

        def part(state, name):
            return {key.partition(".")[2]: each for key, each in state.items() if key.startswith(name)}

        def step(state, batch):
            factor, weights = run.begin_turn(), part(state, "weights")
            if factor is not None:
                weights = {name: run.hurt(name, each, factor) for name, each in weights.items()}
            losses, found = task.gradients(weights, *batch.data, run.case.activation)
            new = {}
            for name, each in found.items():
                new[f"speed.{name}"] = state[f"speed.{name}"] * np.float32(task.MOMENTUM) + each
                new[f"weights.{name}"] = weights[name] - np.float32(batch.lr) * new[f"speed.{name}"]
            return logs().add_metric("loss", losses.mean()), new

        def end_epoch(state):
            weights = part(state, "weights")
            run.end_epoch(weights, val_loss=task.error(weights, task.VAL_X, task.VAL_Y, run.case.activation))

        with r8:
            state, *_ = loop(
                start, scheduled(r8, run.fetch), {every(1): [step, report_to(r8)], every(task.STEPS): end_epoch}
            )
        run.weights, run.optimizer = part(state, "weights"), [*part(state, "speed").values()]


COLUMNS = {"epoch_stream": EpochStream, "loops": Loops}
