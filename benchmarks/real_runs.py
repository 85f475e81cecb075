"""Real trainings for the benchmarks of the guard: small torch networks, several side by side, drawn by R8Scheduler.

Nothing is printed here; `divergences.py` and `detectors.py` import it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from learnit_r8 import FiniteGuard, R8Scheduler, RateShape, Ticket

torch.set_num_threads(1)


class Task(NamedTuple):
    """Inputs float32[N, D], targets [N], and the loss of each sample given the outputs float32[..., K]."""

    inputs: torch.Tensor
    targets: torch.Tensor
    num_outputs: int
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


def squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs[..., 0] - targets) ** 2


def gaussian_nll(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative where the network is sure and right."""
    log_sigma = outputs[..., 1].clamp(-4, 4)
    return log_sigma + 0.5 * ((outputs[..., 0] - targets) / log_sigma.exp()) ** 2


def clusters(seed: int) -> Task:
    """Ten Gaussian clusters in 20 dimensions, 5 % of the labels wrong."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 20, generator=random) * 1.2
    labels = torch.randint(0, 10, (4096,), generator=random)
    inputs = centres[labels] + torch.randn(4096, 20, generator=random)
    wrong = torch.rand(4096, generator=random) < 0.05
    labels[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=random)
    return Task(inputs, labels, 10, cross_entropy)


def digits(seed: int) -> Task:
    """scikit-learn's digits, all labels right: most losses end near 0."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    return Task(torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order]), 10, cross_entropy)


def _curve(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2048, 8, generator=random)
    curve = torch.sin(2 * inputs[:, 0]) + inputs[:, 1] * inputs[:, 2] + 0.5 * inputs[:, 3]
    noise = torch.distributions.StudentT(3.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return inputs, curve + 0.1 * noise.sample((2048,))


def regression(seed: int) -> Task:
    """A curve with heavy-tailed noise, squared error."""
    return Task(*_curve(seed), 1, squared_error)


def likelihood(seed: int) -> Task:
    """The same curve, its mean and spread by maximum likelihood: losses of both signs."""
    return Task(*_curve(seed), 2, gaussian_nll)


TASKS = {"clusters": clusters, "digits": digits, "regression": regression, "likelihood": likelihood}


@dataclass(frozen=True)
class Setting:
    """What several trainings side by side have in common.

    Attributes:
        task: Name in `TASKS`.
        optimizer: "sgd" (momentum 0.9) or "adam".
        batch_size: B.
        per_sample: Whether each sample's loss is reported, and not only the mean.
        policy: Of the scheduler.
        schedule: progress -> factor of the learning rate; None for a constant one.
    """

    task: str
    optimizer: str
    batch_size: int
    per_sample: bool = False
    policy: str = "balanced"
    schedule: Callable[[float], float] | None = None

    @property
    def lr(self) -> float:
        """A rate that trains well."""
        if self.optimizer == "sgd":
            slow = {"regression": 0.3, "likelihood": 0.1}.get(self.task, 1.0)
            return slow * (0.03 if self.batch_size >= 8 else 0.005)
        return 2e-3 if self.batch_size >= 8 else 5e-4


class Networks:
    """R networks with two hidden layers of 64, each with its own weights and learning rate."""

    def __init__(self, task: Task, setting: Setting, seeds: Sequence[int]) -> None:
        sizes = [task.inputs.shape[1], 64, 64, task.num_outputs]
        self.weights: list[torch.Tensor] = []
        for inputs, outputs in itertools.pairwise(sizes):
            draws = [torch.rand(inputs + 1, outputs, generator=torch.Generator().manual_seed(7 * s + 1)) for s in seeds]
            weight = (2 * torch.stack(draws) - 1) / inputs**0.5
            self.weights += [weight[:, :-1].clone().requires_grad_(), weight[:, -1:].clone().requires_grad_()]
        self._adam = setting.optimizer == "adam"
        self._moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]
        self._steps = 0
        self._loss = task.loss

    def _outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2, w3, b3 = self.weights
        hidden = torch.relu(torch.baddbmm(b1, inputs, w1))
        return torch.baddbmm(b3, torch.relu(torch.baddbmm(b2, hidden, w2)), w3)

    def losses(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """float32[R, B], the loss of every sample; its gradient is kept for `step`."""
        losses = self._loss(self._outputs(inputs), targets)
        self._gradients = torch.autograd.grad(losses.mean(1).sum(), self.weights)
        return losses.detach()

    @torch.no_grad()
    def evaluate(self, task: Task) -> NDArray[np.float64]:
        """float64[R], mean loss on the first 1024 samples."""
        inputs, targets = (part[:1024].expand(len(self.weights[0]), *part[:1024].shape) for part in task[:2])
        return self._loss(self._outputs(inputs), targets).mean(1).double().numpy()

    @torch.no_grad()
    def step(self, lr: torch.Tensor) -> None:
        """One step of every network at its own rate, float32[R, 1, 1]."""
        self._steps += 1
        for weight, gradient, (first, second) in zip(self.weights, self._gradients, self._moments, strict=True):
            if self._adam:
                first.lerp_(gradient, 0.1)
                second.lerp_(gradient * gradient, 0.001)
                mean, square = first / (1 - 0.9**self._steps), second / (1 - 0.999**self._steps)
                weight -= lr * mean / (square.sqrt() + 1e-8)
            else:
                first.mul_(0.9).add_(gradient)
                weight -= lr * first


class Runs(NamedTuple):
    """What R networks did.

    Attributes:
        rows: float64[R, steps, 4]: loss, expected loss, typical loss, scheduled learning rate. NaN after the end.
        truth: float64[R, steps / EVALUATE_EVERY]: the loss on a fixed part of the data before every such step, which
            no batch's luck disturbs. NaN after the end.
    """

    rows: NDArray[np.float64]
    truth: NDArray[np.float64]


EVALUATE_EVERY = 20


def train(setting: Setting, factors: Sequence[float], seeds: Sequence[int], *, before: int, after: int) -> Runs:
    """Train R networks; from step ``before`` on, each one's learning rate is multiplied by its factor.

    The scheduler is not told of the factor, and refuses nothing but what is not finite.

    Args:
        setting: What they have in common.
        factors: One for each network.
        seeds: Likewise, for weights and batches. The data are of ``seeds[0]``.
        before: Steps before.
        after: Steps after; a network whose loss is no longer finite is left alone.
    """
    task = TASKS[setting.task](seeds[0])
    networks = Networks(task, setting, seeds)
    steps = before + after
    schedulers = [
        R8Scheduler(
            len(task.targets),
            batch_size=setting.batch_size,
            num_steps=steps,
            initial_lr=setting.lr,
            scheduler_mode=RateShape(
                setting.schedule or "constant", warmup_proportion=None if setting.schedule else 0.0
            ),
            policy=setting.policy,
            seed=seed,
            guard=FiniteGuard(),
        )
        for seed in seeds
    ]
    rows = np.full((len(seeds), steps, 4), np.nan)
    truth = np.full((len(seeds), steps // EVALUATE_EVERY + 1), np.nan)
    is_on = [True] * len(seeds)
    factor = torch.tensor(factors, dtype=torch.float32).view(-1, 1, 1)
    indices = [np.empty(0, np.int64)] * len(seeds)
    for step in range(steps):
        if step % EVALUATE_EVERY == 0:
            truth[:, step // EVALUATE_EVERY] = networks.evaluate(task)
        tickets: list[Ticket | None] = [r8.draw() if on else None for r8, on in zip(schedulers, is_on, strict=True)]
        indices = [old if ticket is None else ticket.indices for ticket, old in zip(tickets, indices, strict=True)]
        size = min(map(len, indices))
        chosen = torch.from_numpy(np.stack([part[:size] for part in indices]))
        losses = networks.losses(task.inputs[chosen], task.targets[chosen]).double().numpy()
        lr = next(t.lr for t in tickets if t is not None)
        networks.step(lr * (factor if step >= before else torch.ones_like(factor)))
        for number, (r8, ticket) in enumerate(zip(schedulers, tickets, strict=True)):
            if ticket is not None:
                mean = float(losses[number].mean())
                chunk, with_trend = ticket.batch.chunk, r8.table.learner.with_trend
                expected, typical = with_trend(chunk.expected[ticket.batch.slot]), with_trend(chunk.typical)
                rows[number, step] = mean, expected, typical, ticket.lr
                is_on[number] = bool(np.isfinite(losses[number]).all() and abs(mean) < 1e30)
                if is_on[number]:
                    r8.report(ticket, losses[number] if setting.per_sample else mean)
        if not any(is_on):
            break
    truth[:, -1] = networks.evaluate(task)
    return Runs(rows, truth)
