"""Trainings that explode again and again by themselves: what R8 does, beside each remedy in hindsight.

An *explosion* is a loss that is not finite, or above the untrained model's and `EXPLODED` times the median of the last
ones. The remedies: none (*bare*), the norm of the gradient clipped at several values, *half the rate*, each step left
out that would explode (*leave out*), the weights of some steps before with other batches from there on (*go back*), and
that with moments that begin anew (*fresh moments*). *R8* takes the steps and chooses by itself. What counts is the loss
on held-out data, the median over the seeds: R8 is *near* if its progress over the untrained model is within 2 % of that
of the best remedy.

Constants of the package may be chosen on the first four trainings only; the other eight confirm them.

    python benchmarks/explosions.py             12 trainings, 10 ways, 3 seeds: some minutes on two cores
    python benchmarks/explosions.py --quick     two trainings, one seed
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import statistics
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from natural import (
    Batches,
    Data,
    Recurrent,
    Task,
    adamw,
    deep_mlp,
    digits,
    evaluate,
    housing,
    momentum,
    per_letter,
    sgd,
    shakespeare,
)
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from learnit_r8.recovery import persistence
from learnit_r8.torch import attach

EXPLODED, USUAL, APART, BACK = 1.5, 32, 8, 20
"""Times the median of the last losses from which one is an explosion; how many those are; steps between two explosions;
and between two copies of the weights."""

CLIPS = (0.1, 0.3, 1.0, 3.0)
WAYS = ("bare", *(f"clip {norm:g}" for norm in CLIPS), "half rate", "leave out", "go back", "fresh moments", "R8")
NEAR = 0.02


class Half(torch.autograd.Function):
    """Rounds to numbers of 16 bits, the gradient too, which is scaled for that as where losses are."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.half().float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return (gradient * 2.0**13).half().float() / 2.0**13


class Rounded(nn.Module):
    """A network each of whose layers gives numbers of 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), *(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = Half.apply(layer(Half.apply(x)).relu())
        return Half.apply(self.layers[-1](x))


class Experts(nn.Module):
    """One of eight experts for each sample, weighted by the gate that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(64, 48), nn.Linear(48, 8), nn.Linear(48, 10)
        self.into, self.out = nn.Parameter(torch.randn(8, 48, 96) / 7), nn.Parameter(torch.randn(8, 96, 48) / 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        share, chosen = self.gate(x).softmax(1).max(1)
        hidden = torch.einsum("bi,bij->bj", x, self.into[chosen]).relu()
        return self.last(x + 4 * share[:, None] * torch.einsum("bi,bij->bj", hidden, self.out[chosen]))


class Squares(nn.Module):
    """A polynomial network: its activations are squares."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            hidden = layer(x)
            x = hidden + 0.5 * hidden.square()
        return self.layers[-1](x)


class Attention(nn.Module):
    """Over the rows of an image, without any norm of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(8, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        self.heads = nn.ModuleList(nn.Linear(32, 96) for _ in range(3))
        self.wide = nn.ModuleList(mlp(32, 64, 32) for _ in range(3))
        self.last = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.view(-1, 8, 8)) + self.places
        for head, wide in zip(self.heads, self.wide, strict=True):
            queries, keys, values = head(x).chunk(3, -1)
            x = x + (queries @ keys.transpose(1, 2)).softmax(-1) @ values
            x = x + wide(x)
        return self.last(x.mean(1))


class Residuals(nn.Module):
    """Twelve blocks without a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 48), nn.Linear(48, 10)
        self.blocks = nn.ModuleList(mlp(48, 48, 48) for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


class Product(nn.Module):
    """The product of two networks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = mlp(7, 48, 8), mlp(7, 48, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.one(x) * self.other(x)).sum(1, keepdim=True)


def mlp(*sizes: int, kind: type[nn.Module] = nn.ReLU) -> nn.Module:
    parts = [part for one, other in pairwise(sizes) for part in (nn.Linear(one, other), kind())]
    return nn.Sequential(*parts[:-1])


def rnn(kind: str) -> nn.Module:
    core = nn.RNN(32, 64, nonlinearity=kind, batch_first=True)
    if kind == "relu":
        nn.init.eye_(core.weight_hh_l0)
    return Recurrent(core, 65, 65)


def log_link(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the log likelihood of a Poisson distribution whose rate is an exponential."""
    return (output.exp() - target * output).mean()


def log_variance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus the log likelihood of a normal distribution whose mean and variance are learned."""
    mean, log = output[:, :1], output[:, 1:]
    return (0.5 * (target - mean).square() * (-log).exp() + 0.5 * log).mean()


def slow_adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Whose second moments are those of long ago."""
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.9999))


def letters() -> Data:
    return shakespeare(16)


def raw_digits() -> Data:
    """From 0 to 16; most pixels of the rim are 0 in nearly all images."""
    data = digits()
    return Data(8 * data.x + 8, data.y, 8 * data.held_x + 8, data.held_y)


def task(
    make_data: Callable[[], Data], make_model: Callable[[], nn.Module], make: Any, lr: float, loss: Any, size: int,
    steps: int, confirms: bool = True,
) -> Task:  # fmt: skip
    return Task(make_data, make_model, make, lr, loss, size, steps, confirms=confirms)


TRAININGS = {
    "stale second moments": task(
        raw_digits, lambda: mlp(64, 64, 64, 10), slow_adam, 0.02, cross_entropy, 8, 500, confirms=False
    ),
    "mixture of experts": task(digits, Experts, momentum, 0.04, cross_entropy, 8, 500, confirms=False),
    "recurrent, tanh": task(letters, lambda: rnn("tanh"), sgd, 4.0, per_letter, 4, 400, confirms=False),
    "log link": task(
        lambda: housing("people"), lambda: mlp(6, 48, 48, 1, kind=nn.Tanh), sgd, 0.15, log_link, 4, 500, confirms=False
    ),
    "attention": task(digits, Attention, adamw, 0.01, cross_entropy, 8, 400),
    "deep ReLU": task(raw_digits, deep_mlp, slow_adam, 0.01, cross_entropy, 8, 400),
    "fp16": task(digits, Rounded, momentum, 0.05, cross_entropy, 8, 500),
    "recurrent, ReLU": task(letters, lambda: rnn("relu"), sgd, 0.3, per_letter, 4, 400),
    "residuals": task(digits, Residuals, torch.optim.Adam, 0.01, cross_entropy, 8, 400),
    "product": task(lambda: housing("value"), Product, sgd, 0.003, mse_loss, 8, 500),
    "log variance": task(
        lambda: housing("value"), lambda: mlp(7, 48, 48, 2, kind=nn.Tanh), momentum, 0.03, log_variance, 8, 500
    ),
    "squares": task(digits, Squares, sgd, 0.08, cross_entropy, 8, 500),
}


class Result(NamedTuple):
    """The loss on held-out data of the untrained and of the trained model, explosions met, and what R8 said."""

    untrained: float
    final: float
    exploded: int = 0
    said: tuple[str, ...] = ()


class Explosions:
    """Tells and counts explosions.

    Args:
        untrained: The loss of the untrained model.
    """

    def __init__(self, untrained: float) -> None:
        self.count, self._untrained, self._calm, self._last = 0, untrained, APART, deque[float](maxlen=USUAL)

    def note(self, loss: float) -> bool:
        """Whether a loss is an explosion; if not, it counts among the last ones."""
        usual = statistics.median(self._last) if self._last else math.inf
        if math.isfinite(loss) and loss <= max(self._untrained, usual + (EXPLODED - 1) * abs(usual)):
            self._last.append(loss)
            self._calm += 1
            return False
        self.count += self._calm >= APART
        self._calm = 0
        return True


def train(name: str, way: str, seed: int) -> Result:
    """Train once."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task, data = TRAININGS[name], TRAININGS[name].make_data()
    torch.manual_seed(seed)
    model = task.make_model()
    untrained = evaluate(task, model, data)
    optimizer = task.make_optimizer(model.parameters(), task.lr / (2 if way == "half rate" else 1))
    batches = Batches(task, data, 100 + seed)
    if way == "R8":
        said: list[str] = []

        def hear(event: Any) -> None:
            if type(event).__name__ == "Notice":
                said.append(event.text)

        persistence.DOUBLING_SECONDS = math.inf
        settings = {"num_steps": task.num_steps, "listeners": [hear], "clock": lambda: 0.0}
        with attach(model, optimizer, batches, **settings) as adapter:
            for x, y in adapter.batches():
                adapter.step(task.loss(model(x), y))
        return Result(untrained, evaluate(task, model, data), said=tuple(said))
    explosions, goes_back = Explosions(untrained), way in ("go back", "fresh moments")
    kept = before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    for step, (x, y) in zip(range(task.num_steps), batches, strict=False):
        if goes_back and not step % BACK:
            kept, before = before, copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        optimizer.zero_grad()
        loss = task.loss(model(x), y)
        if explosions.note(float(loss.detach())):
            if goes_back:
                model.load_state_dict(kept[0])
                optimizer.load_state_dict(copy.deepcopy(kept[1]))
                if way == "fresh moments":
                    optimizer.state.clear()
            if goes_back or way == "leave out":
                continue
        loss.backward()
        if way.startswith("clip"):
            nn.utils.clip_grad_norm_(model.parameters(), float(way.split()[1]))
        optimizer.step()
    return Result(untrained, evaluate(task, model, data), explosions.count)


def find_best(results: dict[tuple[str, str, int], Result], name: str, seeds: range) -> tuple[str, dict[str, float]]:
    """The best remedy in hindsight, and the median of each way."""
    ends = {way: statistics.median(results[name, way, seed].final for seed in seeds) for way in WAYS}
    return min(WAYS[:-1], key=lambda way: ends[way]), ends


def print_training(results: dict[tuple[str, str, int], Result], name: str, seeds: range) -> bool:
    """Print what became of one training; returns whether R8 is near the best remedy."""
    best, ends = find_best(results, name, seeds)
    untrained = statistics.median(results[name, "bare", seed].untrained for seed in seeds)
    is_near = ends["R8"] <= ends[best] + NEAR * (untrained - ends[best])
    exploded = " ".join(str(results[name, "go back", seed].exploded) for seed in seeds)
    print(f"{name:22}{exploded:>10}{untrained:>7.3g}", *(f"{ends[way]:>7.3g}" for way in WAYS), f"  {best}", end="")
    each = " ".join(f"{results[name, 'R8', seed].final:.3g}" for seed in seeds)
    print(f"{'' if is_near else ', R8 is not near'} (R8 {each})", flush=True)
    return is_near


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, help="by default all")
    parser.add_argument("--tuning", action="store_true", help="only those on which constants may be chosen")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--said", action="store_true", help="print what R8 said in each run")
    options = parser.parse_args(arguments)
    names = options.trainings or [name for name, each in TRAININGS.items() if not (options.tuning and each.confirms)]
    if options.quick:
        # These need no data but scikit-learn's.
        names, options.seeds = ["mixture of experts", "squares"], 1
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = [(name, way, seed) for name in names for seed in seeds for way in WAYS]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, seeds {list(seeds)}")
    print(f"{'':22}{'explosions':>10}{'at 0':>7}", *(f"{way.replace('moments', ''):>7.7}" for way in WAYS), "  best")
    results: dict[tuple[str, str, int], Result] = {}
    num_near = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for run, result in zip(runs, pool.map(train, *zip(*runs, strict=True)), strict=True):
            results[run] = result
            if options.said and result.said:
                print(run, f"{result.final:.3g}", *result.said, sep="\n    ", flush=True)
            if run[1:] == (WAYS[-1], seeds[-1]):
                num_near += print_training(results, run[0], seeds)
    print(f"R8 is within {NEAR:.0%} of the best remedy in {num_near} of {len(names)}")


if __name__ == "__main__":
    main()
