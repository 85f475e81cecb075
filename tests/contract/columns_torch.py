"""`attach` in a torch loop: R8's batches, a DataLoader's, a stream's."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from learnit_r8.torch import attach

from . import task

torch.set_num_threads(1)


class Network(torch.nn.Module):
    """The small network, with the first weights of the task."""

    def __init__(self, activation="tanh"):
        super().__init__()
        self.first, self.last, self.activation = torch.nn.Linear(8, 16), torch.nn.Linear(16, 3), activation
        write_weights(self, task.first_weights())

    def forward(self, x):
        hidden = self.first(x)
        hidden = torch.tanh(hidden) if self.activation == "tanh" else torch.where(hidden > 0, hidden, 0.0)
        return self.last(hidden)


def tensors_of(network):
    """By the names of the task, its own parameters, and whether they are the other way round."""
    first, last = network.first, network.last
    return {"w1": (first.weight, True), "b1": (first.bias, False), "w2": (last.weight, True), "b2": (last.bias, False)}


def read_weights(network):
    found = {name: (each.detach().numpy(), turned) for name, (each, turned) in tensors_of(network).items()}
    return {name: (each.T if turned else each).copy() for name, (each, turned) in found.items()}


def write_weights(network, weights):
    with torch.no_grad():
        for name, (each, turned) in tensors_of(network).items():
            each.copy_(torch.from_numpy(weights[name].T if turned else weights[name]))


def hurt(run, network):
    """The damage that the case has in store for this turn of the loop."""
    factor = run.begin_turn()
    if factor is not None:
        write_weights(network, {name: run.hurt(name, each, factor) for name, each in read_weights(network).items()})


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=task.RATE, momentum=task.MOMENTUM)


def write_down(run, network, optimizer):
    run.weights = read_weights(network)
    run.optimizer = [each["momentum_buffer"].numpy().copy() for each in optimizer.state_dict()["state"].values()]
    run.generators = torch.get_rng_state().numpy().copy()


def validate(network):
    with torch.no_grad():
        return float(cross_entropy(network(torch.from_numpy(task.VAL_X)), torch.from_numpy(task.VAL_Y)))


class Rows(Dataset):
    """The samples of a run, a batch at a time."""

    def __init__(self, run):
        self.run = run

    def __len__(self):
        return task.NUM_SAMPLES

    def __getitem__(self, index):
        return tuple(torch.from_numpy(each)[index] for each in self.run.samples())

    def __getitems__(self, rows):
        return list(zip(*map(torch.from_numpy, self.run.fetch(rows)), strict=True))


class Order(Sampler):
    """The samples of each epoch, in the order of one's own; it counts the epochs, or is told of them."""

    def __init__(self, run):
        self.run, self.epoch = run, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return task.NUM_SAMPLES

    def __iter__(self):
        batches = self.run.epoch_of_rows(self.epoch)
        self.epoch += 1
        for rows in batches:
            yield from map(int, rows)


class Stream(IterableDataset):
    """Whole batches, one after the other, without a length; it counts its epochs."""

    def __init__(self, run):
        self.run, self.epoch = run, 0

    def __iter__(self):
        batches = self.run.epoch_of_rows(self.epoch)
        self.epoch += 1
        for rows in batches:
            yield tuple(torch.from_numpy(each) for each in self.run.fetch(rows))


def own_loader(run, kind="loader"):
    """A loader of one's own batches."""
    if kind == "stream":
        return DataLoader(Stream(run), batch_size=None)
    return DataLoader(Rows(run), batch_size=task.BATCH, sampler=Order(run))


class Attach:
    """R8's batches and rates, by ``adapter.step(adapter.loss(...))``."""

    own = False

    def train(self, run):
        torch.manual_seed(0)
        network = Network(run.case.activation)
        optimizer = sgd(network)
        settings = {
            "batch_size": task.BATCH,
            "num_epochs": run.case.epochs,
            **task.CONSTANT,
            **run.settings,
            **run.files,
        }
        adapter = attach(network, optimizer, Rows(run), **settings)
        run.r8, loader = adapter.scheduler, adapter.loader()
        with adapter:
            for _ in adapter.epochs():
                for x, y in loader:
                    hurt(run, network)
                    adapter.step(adapter.loss(cross_entropy(network(x), y, reduction="none")))
                run.end_epoch(read_weights(network), val_loss=validate(network))
        write_down(run, network, optimizer)

    def plain(self, run):
        torch.manual_seed(0)
        network = Network(run.case.activation)
        optimizer, loader = sgd(network), own_loader(run, getattr(self, "kind", "loader"))
        for _ in range(run.case.epochs):
            for x, y in loader:
                hurt(run, network)
                optimizer.param_groups[0]["lr"] = run.rate or task.RATE
                loss = cross_entropy(network(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            run.end_epoch(read_weights(network), val_loss=validate(network))
        write_down(run, network, optimizer)


class AttachLoader(Attach):
    """The batches of a DataLoader, the script's own rate and step."""

    own, kind = True, "loader"

    def train(self, run):
        torch.manual_seed(0)
        network = Network(run.case.activation)
        optimizer = sgd(network)
        adapter = attach(
            network, optimizer, own_loader(run, self.kind), num_epochs=run.case.epochs, **run.settings, **run.files
        )
        run.r8 = adapter.scheduler
        with adapter:
            for _ in adapter.epochs():
                for x, y in adapter.batches():
                    hurt(run, network)
                    loss = cross_entropy(network(x), y)
                    if adapter.report(loss):
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                run.end_epoch(read_weights(network), val_loss=validate(network))
        write_down(run, network, optimizer)


class AttachStream(AttachLoader):
    """The same over a stream without a length."""

    kind = "stream"


COLUMNS = {"attach": Attach, "attach loader": AttachLoader, "attach stream": AttachStream}
