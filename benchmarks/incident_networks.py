"""Small tasks for `incidents.py` in torch: what numpy networks lack, and losses whose level changes in mid-training.

A step takes 0.2 to 0.6 ms. Every model here offers what `incident_tasks.Network` does, and `forward`, the losses as a
tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from incident_tasks import HELD_OUT, make_task
from torch import Tensor, nn

torch.set_num_threads(1)

CHANGES = ("term", "times 4", "times 10", "late classes", "shifted inputs", "augmentation", "unfreezing")
"""Half-way a term is added to the loss, it is scaled, five of ten classes begin, and so on."""


class Rows(nn.Module):
    """A recurrent network that reads the rows of an image of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.cell(x.view(-1, 8, 8))[0][:, -1])


class Patches(nn.Module):
    """A transformer of one layer over the rows of an image of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.02 * torch.randn(8, 32))
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.layer(self.embed(x.view(-1, 8, 8)) + self.place).mean(1))


def stack(*sizes: int, norm: bool = False, drop: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]
        layers += [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: stack(64, 64, 10),
    "norm": lambda: stack(64, 64, 10, norm=True),
    "dropout": lambda: stack(64, 64, 10, drop=0.3),
    "augmented": lambda: stack(64, 64, 10),
    "rows": Rows,
    "patches": Patches,
    "curve": lambda: stack(8, 32, 1),
    "outliers": lambda: stack(8, 32, 1),
}
"""Digits, but for "curve" and "outliers", a regression with Gaussian noise, and with noise of heavy tails."""

OPTIMIZERS: dict[str, tuple[float, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (0.05, lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9)),
    "adam": (0.01, torch.optim.Adam),
    "adamw": (0.01, lambda parameters, lr: torch.optim.AdamW(parameters, lr, weight_decay=0.01)),
}
"""With the best rate for digits, of steps by a factor of three; a regression takes Adam's three times as high."""


class TorchModel:
    """A network, its data and its optimizer.

    Args:
        net: Name in `NETS`.
        optimizer: Name in `OPTIMIZERS`.
        seed: Of data, weights and noise.
        change: Name in `CHANGES`, what happens at ``change_at``; "" for nothing.

    Attributes:
        now: The number of the batch.
        clip: Norm to which `step` clips gradients; None for no clipping.
    """

    is_sum = False

    def __init__(self, net: str, optimizer: str, seed: int, change: str = "") -> None:
        torch.manual_seed(1000 + seed)
        self.name, self.change, self.change_at, self.now = net, change, 0, 0
        self.is_curve = net in ("curve", "outliers")
        task = make_task({"curve": "adam regression", "outliers": "student"}.get(net, "digits"), seed)
        x = torch.tensor(task.inputs, dtype=torch.float32)
        y = torch.tensor(task.targets, dtype=torch.float32 if self.is_curve else torch.int64)
        kept = len(y) - HELD_OUT
        self.x, self.y, self.test_x, self.test_y = x[:kept].clone(), y[:kept], x[kept:], y[kept:]
        self.net, self.num_samples = NETS[net](), kept
        lr, make = OPTIMIZERS[optimizer]
        self.rate = 3 * lr if self.is_curve and optimizer != "sgd" else lr
        self.optimizer = make(self.net.parameters(), lr=self.rate)
        self.clip: float | None = None
        self._reduced: Tensor | None = None

    def spoil(self, samples: Any) -> None:
        """Make the inputs of these samples NaN."""
        self.x[torch.as_tensor(samples)] = torch.nan

    def forward(self, indices: Any) -> Tensor:
        """float[B], the losses."""
        rows = torch.as_tensor(indices)
        x, y, has_changed = self.x[rows], self.y[rows], bool(self.change) and self.now >= self.change_at
        if self.change == "unfreezing":
            next(self.net.children()).requires_grad_(has_changed)
        if self.name == "augmented" or self.change == "augmentation":
            x = x + (1.0 if has_changed else 0.3) * torch.randn_like(x)
        if has_changed and self.change == "shifted inputs":
            x = blurred(x)
        outputs = self.net(x)
        losses = self._compare(outputs, y)
        if self.change == "late classes" and not has_changed:
            return losses * (y < 5)
        if not has_changed:
            return losses
        if self.change == "term":
            return losses + 0.02 * sum((p**2).sum() for p in self.net.parameters())
        return losses * {"times 4": 4.0, "times 10": 10.0}.get(self.change, 1.0)

    def _compare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.is_curve:
            return (outputs[:, 0] - targets) ** 2
        return F.cross_entropy(outputs, targets, reduction="none")

    def losses(self, indices: Any) -> Any:
        """float64[B]; their mean is kept for `step`."""
        losses = self.forward(indices)
        self._reduced = losses.mean()
        return losses.detach().double().numpy()

    def norm(self) -> float:
        """The length of the gradient."""
        assert self._reduced is not None
        self.optimizer.zero_grad()
        self._reduced.backward()
        self._reduced = None
        return float(nn.utils.clip_grad_norm_(self.net.parameters(), math.inf))

    def step(self, lr: float, scale: float = 1.0) -> None:
        """One step of the optimizer on the gradient times ``scale``."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self._reduced is not None:
            self.optimizer.zero_grad()
            (self._reduced * scale).backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()

    def score(self) -> float:
        """In points of 100, on data held out: accuracy, or the share of variance that is explained."""
        self.net.eval()
        x = blurred(self.test_x) if self.change == "shifted inputs" else self.test_x
        with torch.no_grad():
            outputs = self.net(x)
        self.net.train()
        if not torch.isfinite(outputs).all():
            return 0.0
        if self.is_curve:
            return 100 * max(0.0, 1 - float(((outputs[:, 0] - self.test_y) ** 2).mean() / self.test_y.var()))
        return 100 * float((outputs.argmax(1) == self.test_y).double().mean())

    def loss(self) -> float:
        """Mean loss of all samples that are finite, without noise; changes nothing."""
        self.net.eval()
        with torch.no_grad():
            losses = self._compare(self.net(self.x), self.y)
        self.net.train()
        return float(losses[torch.isfinite(self.x).all(1)].mean())

    def state(self) -> dict[str, Any]:
        """All of it, and the state of the generator, as the adapter keeps it."""
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}

    def load(self, source: Any, from_ram: bool = True) -> None:
        """Put back what `state` returned."""
        self.net.load_state_dict(source["net"])
        self.optimizer.load_state_dict(source["optimizer"])
        torch.set_rng_state(source["rng"])


def blurred(x: Tensor) -> Tensor:
    """Each pixel the mean of its neighbourhood."""
    return F.avg_pool2d(x.view(-1, 1, 8, 8), 3, 1, 1).flatten(1)


class Gan:
    """A generator and a discriminator of points on a circle; the loss reported is the discriminator's."""

    is_sum, change, change_at, now, rate = False, "", 0, 0, 1e-3

    def __init__(self, seed: int) -> None:
        torch.manual_seed(1000 + seed)
        rng = np.random.default_rng([seed, 17])
        angle = rng.uniform(0, 2 * np.pi, 1000)
        points = np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.05, (1000, 2))
        self.x, self.num_samples = torch.tensor(points, dtype=torch.float32), 1000
        self.generator, self.discriminator = stack(4, 32, 2), stack(2, 32, 1)
        self.parts = [self.generator, self.discriminator]
        self.optimizers = [torch.optim.Adam(part.parameters(), self.rate, betas=(0.5, 0.99)) for part in self.parts]
        self._reduced: list[Tensor] = []

    def losses(self, indices: Any) -> Any:
        """float64[B], the discriminator's."""
        fake = self.generator(torch.randn(len(indices), 4))
        losses = F.softplus(-self.discriminator(self.x[torch.as_tensor(indices)]))
        losses = (losses + F.softplus(self.discriminator(fake.detach())))[:, 0]
        self._reduced = [F.softplus(-self.discriminator(fake)).mean(), losses.mean()]
        return losses.detach().double().numpy()

    def step(self, lr: float, scale: float = 1.0) -> None:
        """One step of the generator, then one of the discriminator."""
        for optimizer, loss in zip(self.optimizers, self._reduced, strict=True):
            for each in self.optimizers:
                each.zero_grad()
            optimizer.param_groups[0]["lr"] = lr
            (loss * scale).backward(retain_graph=True)
            # The discriminator's gradient does not need the generator's weights, which this step changes.
            optimizer.step()

    def score(self) -> float:
        """100 less the mean distance of generated points from the circle in hundredths of its radius."""
        noise = torch.randn(2000, 4, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            error = float((self.generator(noise).norm(dim=1) - 1).abs().mean())
        return 100 - 100 * error if np.isfinite(error) else 0.0

    def loss(self) -> float:
        """The same as an error."""
        return 1 - self.score() / 100

    def state(self) -> dict[str, Any]:
        """All of it, and the state of the generator of random numbers."""
        return {
            "nets": [part.state_dict() for part in self.parts],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": torch.get_rng_state(),
        }

    def load(self, source: Any, from_ram: bool = True) -> None:
        """Put back what `state` returned."""
        for part, state in zip(self.parts, source["nets"], strict=True):
            part.load_state_dict(state)
        for optimizer, state in zip(self.optimizers, source["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(source["rng"])
