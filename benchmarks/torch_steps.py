"""Training steps, plain and ours, for torch_adapter.py: sides that take turns, and what each part of a step takes.

A side is a generator that trains one step whenever it is asked. The sides take turns, some steps each, in an order that
rotates; so a noisy neighbour or a hot processor falls on all alike, and a ratio is that of one turn. All train at the
same constant rate: with a warm-up on one side only, the weights would differ, and with them how well the processor
guesses the branches of a max-pooling, worth 5 % of a step.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from learnit_r8.engine.values import grouped
from learnit_r8.torch import attach

LR = 0.01
TURN = 4
"""Steps in a turn of a side."""


class Items(torch.utils.data.Dataset[Any]):
    """A data set that is read sample by sample."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Any:
        return tuple([tensor[index] for tensor in self.tensors])


class InfoBatch:
    """InfoBatch's sampler and loss, from its paper: kept samples below the mean loss count double."""

    def __init__(self, count: int) -> None:
        self.losses, self.weights = np.ones(count), np.ones(count)
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.losses)

    def __iter__(self) -> Iterator[int]:
        self.weights[:] = 1
        easy = np.flatnonzero(self.losses < self.losses.mean())
        kept = self.rng.choice(easy, len(easy) // 2, replace=False)
        self.weights[kept] = 2
        order = np.concatenate([np.flatnonzero(self.losses >= self.losses.mean()), kept])
        self.rng.shuffle(order)
        return iter(order.tolist())


class Clock:
    """Adds up what the parts of steps take, in seconds of this thread's processor time."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A ``with`` block whose time is that of a part."""
        began = time.thread_time()
        yield
        self.seconds[name].append(time.thread_time() - began)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time a method of an object from now on."""
        call = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        setattr(owner, method, timed)

    def batches(self, loader: Any) -> Iterator[Any]:
        """The batches of a loader."""
        batches = iter(loader)
        while True:
            with self.part("batch"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class Sides:
    """The same training under a shuffling loader, under ours, and under two others.

    Args:
        device: Where to train.
        model: Makes the model.
        data: Data sets, by name.
        batch: Samples in a batch.
        half: Whether to train in half precision with a `GradScaler`.
    """

    def __init__(
        self, device: str, model: Callable[[], nn.Module], data: dict[str, Any], *, batch: int, half: bool = False
    ) -> None:
        self.device, self.model, self.data, self.batch, self.half = device, model, data, batch, half
        self.clocks: dict[str, Clock] = defaultdict(Clock)

    def parts(self) -> tuple[nn.Module, Any, Any]:
        """The model, its optimizer, and the `GradScaler` if there is one."""
        torch.manual_seed(0)
        model = self.model().to(self.device)
        scaler = torch.amp.GradScaler(self.device) if self.half else None
        return model, torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9), scaler

    def losses(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
        """The forward pass."""
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        with torch.autocast(self.device, torch.float16) if self.half else contextlib.nullcontext():
            return cross_entropy(model(x), y, reduction=reduction)

    @staticmethod
    def _step(loss: torch.Tensor, optimizer: Any, scaler: Any, clock: Clock) -> None:
        with clock.part("clear"):
            optimizer.zero_grad()
        with clock.part("backward"):
            (loss if scaler is None else scaler.scale(loss)).backward()
        with clock.part("optimizer"):
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()

    def plain(self, data: str, number: int = 1) -> Iterator[None]:
        """A loop with torch alone."""
        clock, (model, optimizer, scaler) = self.clocks[f"plain {number}, {data}"], self.parts()
        loader = DataLoader(self.data[data], batch_size=self.batch, shuffle=True)
        while True:
            for x, y in clock.batches(loader):
                with clock.part("forward"):
                    loss = self.losses(model, x, y, "mean")
                self._step(loss, optimizer, scaler, clock)
                yield

    def ours(self, data: str, name: str = "ours", **settings: Any) -> Iterator[None]:
        """The same with everything on: losses of samples, balanced batches, the guard, the rate, backups in RAM."""
        clock, (model, optimizer, scaler) = self.clocks[f"{name}, {data}"], self.parts()
        settings = {"scheduler_mode": "constant", "warmup_proportion": 0.0, "num_epochs": 1000, **settings}
        adapter = attach(model, optimizer, self.data[data], batch_size=self.batch, scaler=scaler, **grouped(settings))
        for method, part in (("backward", "backward"), ("apply", "optimizer"), ("clear", "clear")):
            clock.watch(adapter._stepper, method, part)
        loader = adapter.loader()
        for _ in adapter.epochs():
            for x, y in clock.batches(loader):
                with clock.part("forward"):
                    losses = self.losses(model, x, y, "none")
                with clock.part("loss()"):
                    loss = adapter.loss(losses)
                with clock.part("step()"):
                    adapter.step(loss)
                yield

    def info_batch(self) -> Iterator[None]:
        """InfoBatch: it drops samples whose loss is low, and needs the loss of each."""
        data = self.data["items"]
        info, clock, (model, optimizer, scaler) = InfoBatch(len(data)), Clock(), self.parts()
        known = Items(*data.tensors, torch.arange(len(data)))
        loader = DataLoader(known, batch_size=self.batch, sampler=info)  # type: ignore[arg-type]
        while True:
            for x, y, rows in loader:
                losses = self.losses(model, x, y, "none")
                weights = torch.from_numpy(info.weights[rows.numpy()]).to(losses)
                info.losses[rows.numpy()] = losses.detach().cpu().numpy()
                self._step((losses * weights).mean(), optimizer, scaler, clock)
                yield

    def weighted(self) -> Iterator[None]:
        """torch's WeightedRandomSampler."""
        data, clock, (model, optimizer, scaler) = self.data["items"], Clock(), self.parts()
        sampler = WeightedRandomSampler(torch.rand(len(data)), len(data))
        while True:
            for x, y in DataLoader(data, batch_size=self.batch, sampler=sampler):
                self._step(self.losses(model, x, y, "mean"), optimizer, scaler, clock)
                yield


def made_up(samples: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Noise with ten classes, read sample by sample and as a `TensorDataset`."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, *shape, generator=generator), torch.randint(10, (samples,), generator=generator)
    return {"items": Items(x, y), "tensors": TensorDataset(x, y)}


def small_cnn() -> nn.Module:
    """For 28 x 28 pixels."""
    first = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(800, 10))


class Block(nn.Module):
    """Two convolutions, and a way past them."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.past = nn.Conv2d(before, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        return torch.relu(rows + self.past(x))


def resnet18() -> nn.Module:
    """For 32 x 32 pixels, as is usual for CIFAR-10."""
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Block(*sizes) for sizes in [*widths, (512, 512, 1)]]
    first = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def in_turns(sides: list[Iterator[None]], turns: int, clock: Callable[[], float], wait: Callable[[], None]) -> Any:
    """float[turns, sides], seconds of a step of each side in each turn, after a few turns to warm up."""
    seconds = np.zeros((turns, len(sides)))
    for turn in range(-3, turns):
        for which in np.roll(range(len(sides)), turn).tolist():
            began = clock()
            for _ in range(TURN):
                next(sides[which])
            wait()
            if turn >= 0:
                seconds[turn, which] = (clock() - began) / TURN
    return seconds
