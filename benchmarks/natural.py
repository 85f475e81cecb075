"""Trainings that go wrong by themselves: rates from good to thirty times that, and nothing injected.

Each task is trained with its own batches and its own rate (x1), and at three, ten and thirty times the rate: *bare*,
with the norm of the gradient clipped at 1.0 (*clip*), with R8 beside a loop that steps by itself (*user steps*), with
R8 that takes the steps (*R8 steps*), and with R8 and clipping (*R8 + clip*). What counts is the loss on held-out data
in evaluation mode, after as many steps. A run is *lost* if it is worse than the best way's, from the same seed, by
more than half of what that gained over the untrained model. *Worse* are runs whose progress is more than 5 % behind the
bare one's at x1 and x3.

Backups follow the steps alone, and no clock, so that a run is the same beside whatever else the machine does.

Constants of the package may be chosen on the first four tasks only; the other five confirm them.

    python benchmarks/natural.py                         540 runs, an hour on two cores
    python benchmarks/natural.py --tasks GRU --seeds 1   one task, one seed
    python benchmarks/natural.py --quick                 two tasks, one seed, under a minute
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import statistics
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from learnit_r8.recovery import persistence
from learnit_r8.torch import attach

DATA = Path(os.environ.get("LEARNIT_R8_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
FACTORS = (1, 3, 10, 30)
WAYS = ("bare", "clip", "user steps", "R8 steps", "R8 + clip")
NUM_HELD_OUT = 512
CLIP = 1.0

Batch = tuple[torch.Tensor, torch.Tensor]


class Data(NamedTuple):
    """Inputs and targets, for training and held out."""

    x: torch.Tensor
    y: torch.Tensor
    held_x: torch.Tensor
    held_y: torch.Tensor


class Task(NamedTuple):
    """What is trained.

    Attributes:
        make_data: Its data.
        make_model: The untrained model.
        make_optimizer: From parameters and rate to the optimizer.
        lr: A good rate.
        loss: From output and target to the mean loss.
        batch_size, num_steps: As they say.
        warmup: Steps in which the rate rises, before it falls as a cosine; None for a constant rate.
        confirms: Whether it may not be looked at while constants are chosen.
    """

    make_data: Callable[[], Data]
    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[Any, float], torch.optim.Optimizer]
    lr: float
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    batch_size: int
    num_steps: int
    warmup: int | None = None
    confirms: bool = False


def split(x: torch.Tensor, y: torch.Tensor) -> Data:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return Data(x[NUM_HELD_OUT:], y[NUM_HELD_OUT:], x[:NUM_HELD_OUT], y[:NUM_HELD_OUT])


def digits() -> Data:
    found = load_digits()
    pixels = torch.tensor(found.data / 8 - 1, dtype=torch.float32)
    return split(pixels, torch.tensor(found.target))


def housing(target: str) -> Data:
    """California's housing with raw ratios (rooms per household reach 140) and heavy tails among the inputs."""
    with (DATA / "california_housing.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["total_bedrooms"]]
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name != "ocean_proximity"}
    value = columns.pop("median_house_value") / 1e5
    households, people = columns.pop("households"), columns.pop("population")
    columns["total_rooms"] /= households
    columns["total_bedrooms"] /= households
    if target == "value":
        columns["people"] = people / households
        y = value
    else:
        # Blocks of a thousand people, and some of thirty thousand.
        y = people / 1000
    for name in ("longitude", "latitude", "housing_median_age", "median_income"):
        columns[name] = (columns[name] - columns[name].mean()) / columns[name].std()
    x = np.stack(list(columns.values()), axis=1)
    return split(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None])


def shakespeare(length: int) -> Data:
    text = (DATA / "tinyshakespeare.txt").read_text(encoding="utf-8")[:300_000]
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    codes = torch.tensor([letters[letter] for letter in text])
    rows = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
    return split(rows[:, :-1], rows[:, 1:])


def digit_rows() -> Data:
    """The digits as 64 pixels that come one after the other."""
    data = digits()
    return Data(data.x[..., None], data.y, data.held_x[..., None], data.held_y)


class Recurrent(nn.Module):
    """A recurrent network over letters, or over pixels if it has one class for all of them."""

    def __init__(self, core: nn.Module, outputs: int, letters: int | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, 32) if letters else nn.Identity()
        self.core, self.head, self.is_last = core, nn.Linear(core.hidden_size, outputs), letters is None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.core(self.embed(x))[0]
        return self.head(hidden[:, -1] if self.is_last else hidden)


def identity_rnn() -> nn.Module:
    """Le, Jaitly and Hinton (arXiv 1504.00941): a recurrent network of rectifiers that begins as the identity."""
    core = nn.RNN(1, 64, nonlinearity="relu", batch_first=True)
    nn.init.eye_(core.weight_hh_l0)
    nn.init.normal_(core.weight_ih_l0, std=0.05)
    return Recurrent(core, 10, None)


class Transformer(nn.Module):
    """A small language model over letters."""

    def __init__(self, length: int, *, norm_first: bool, layers: int = 2, width: int = 48) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(65, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width) if norm_first else nn.Identity(), nn.Linear(width, 65)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.letters(x) + self.places[: x.shape[1]]
        return self.head(self.norm(self.layers(hidden, mask=self.mask, is_causal=True)))


def deep_mlp(layers: int = 16, width: int = 48) -> nn.Module:
    """No normalisation and no residuals: only He's initialisation (arXiv 1502.01852) carries the signal."""
    parts: list[nn.Module] = []
    for place in range(layers):
        linear = nn.Linear(64 if not place else width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def batch_norm() -> nn.Module:
    parts = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(64, 10))


def mlp(inputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def momentum(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def adamw(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr)


def per_letter(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output.flatten(0, 1), target.flatten())


LETTERS, LENGTH = 65, 32
TASKS = {
    "GRU": Task(
        lambda: shakespeare(LENGTH), lambda: Recurrent(nn.GRU(32, 64, batch_first=True), LETTERS, LETTERS), sgd, 1.0,
        per_letter, 8, 300,
    ),
    "California": Task(lambda: housing("value"), lambda: mlp(7), momentum, 0.005, mse_loss, 16, 600),
    "GPT, AdamW": Task(
        lambda: shakespeare(LENGTH), lambda: Transformer(LENGTH, norm_first=True), adamw, 0.01, per_letter, 8, 300,
        warmup=50,
    ),
    "BatchNorm": Task(digits, batch_norm, sgd, 0.1, cross_entropy, 4, 600),
    "deep MLP": Task(digits, deep_mlp, sgd, 0.02, cross_entropy, 16, 600, confirms=True),
    "GPT, SGD": Task(
        lambda: shakespeare(LENGTH), lambda: Transformer(LENGTH, norm_first=True), momentum, 0.1, per_letter, 8, 300,
        confirms=True,
    ),
    "heavy tails": Task(lambda: housing("people"), lambda: mlp(6), sgd, 0.02, mse_loss, 16, 400, confirms=True),
    "identity RNN": Task(digit_rows, identity_rnn, sgd, 0.001, cross_entropy, 16, 600, confirms=True),
    "post-LN": Task(
        lambda: shakespeare(LENGTH), lambda: Transformer(LENGTH, norm_first=False, layers=4), adamw, 0.003, per_letter,
        8, 250, warmup=20, confirms=True,
    ),
}  # fmt: skip


class Batches:
    """The user's own loader: the same batches for each way of one seed, for as long as anybody asks."""

    def __init__(self, task: Task, data: Data, seed: int) -> None:
        self.task, self.data, self.seed = task, data, seed

    def __iter__(self) -> Iterator[Batch]:
        dice = torch.Generator().manual_seed(self.seed)
        while True:
            rows = torch.randint(len(self.data.x), (self.task.batch_size,), generator=dice)
            yield self.data.x[rows], self.data.y[rows]


class Result(NamedTuple):
    """The loss on held-out data of the untrained and of the trained model; probes, restores, and what was said."""

    untrained: float
    final: float
    probes: int = 0
    restored: int = 0
    said: tuple[str, ...] = ()


def evaluate(task: Task, model: nn.Module, data: Data) -> float:
    model.eval()
    with torch.no_grad():
        loss = float(task.loss(model(data.held_x), data.held_y))
    model.train()
    return loss if math.isfinite(loss) else math.inf


def train(name: str, factor: int, way: str, seed: int) -> Result:
    """Train a task once."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task = TASKS[name]
    data = task.make_data()
    torch.manual_seed(seed)
    model = task.make_model()
    untrained = evaluate(task, model, data)
    optimizer = task.make_optimizer(model.parameters(), task.lr * factor)
    schedule = None
    if task.warmup is not None:
        warmup, rest = task.warmup, task.num_steps - task.warmup
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / rest)),
        )
    batches = Batches(task, data, 100 + seed)
    if way in ("bare", "clip"):
        for _, (x, y) in zip(range(task.num_steps), batches, strict=False):
            optimizer.zero_grad()
            task.loss(model(x), y).backward()
            if way == "clip":
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            if schedule is not None:
                schedule.step()
        return Result(untrained, evaluate(task, model, data))
    heard: list[Any] = []
    also = {} if schedule is None else {"schedule": schedule}
    clip = CLIP if way == "R8 + clip" else None
    persistence.DOUBLING_SECONDS = math.inf
    with attach(
        model, optimizer, batches, num_steps=task.num_steps, also=also, max_grad_norm=clip, listeners=[heard.append],
        clock=lambda: 0.0,
    ) as adapter:  # fmt: skip
        for x, y in adapter.batches():
            loss = task.loss(model(x), y)
            if way != "user steps":
                is_step = bool(adapter.step(loss))
            elif is_step := bool(adapter.report(loss)):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if schedule is not None and is_step:
                schedule.step()
    kinds = [type(event).__name__ for event in heard]
    said = tuple(event.text for event in heard if type(event).__name__ == "Notice")
    return Result(untrained, evaluate(task, model, data), kinds.count("Probed"), kinds.count("RolledBack"), said)


def is_lost(result: Result, best: float) -> bool:
    """Whether it is worse than the best way by more than half of what that gained."""
    return result.final > best + 0.5 * (result.untrained - best)


def is_worse(result: Result, bare: Result) -> bool:
    """Whether its progress is more than 5 % behind the bare run's."""
    return result.final > bare.final + 0.05 * max(0.0, result.untrained - bare.final)


def print_task(name: str, results: dict[tuple[str, int, str, int], Result], seeds: range) -> None:
    found = [results[name, 1, "bare", seed].untrained for seed in seeds]
    print(f"\n{name} (untrained {statistics.median(found):.3g})")
    print(f"{'':6}" + "".join(f"{way:>24}" for way in WAYS))
    for factor in FACTORS:
        cells = []
        for way in WAYS:
            ends = [results[name, factor, way, seed] for seed in seeds]
            cells.append(" ".join("NaN" if math.isinf(each.final) else f"{each.final:.3g}" for each in ends))
        print(f"x{factor:<5}" + "".join(f"{cell:>24}" for cell in cells))


def print_sums(results: dict[tuple[str, int, str, int], Result], names: list[str], seeds: range) -> None:
    cells = [(name, factor, seed) for name in names for factor in FACTORS for seed in seeds]
    print(f"\n{len(cells)} runs of each way; probes as a share of the steps in each run of x1: the median, the highest")
    print(f"{'':12}{'lost':>6}{'share':>8}{'worse at x1':>13}{'at x3':>7}{'probes at x1':>18}")
    for way in WAYS:
        lost, worse = 0, {1: 0, 3: 0}
        probes: list[float] = []
        for name, factor, seed in cells:
            result, bare = results[name, factor, way, seed], results[name, factor, "bare", seed]
            lost += is_lost(result, min(results[name, factor, each, seed].final for each in WAYS))
            if factor in worse:
                worse[factor] += is_worse(result, bare)
            if factor == 1:
                probes.append(result.probes / TASKS[name].num_steps)
        spent = f"{statistics.median(probes):.1%}, {max(probes):.1%}"
        print(f"{way:12}{lost:>6}{lost / len(cells):>8.0%}{worse[1]:>13}{worse[3]:>7}{spent:>18}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="by default all")
    parser.add_argument("--tuning", action="store_true", help="only the tasks on which constants may be chosen")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--said", action="store_true", help="print what R8 said in each run")
    options = parser.parse_args(arguments)
    chosen = [name for name, task in TASKS.items() if not (options.tuning and task.confirms)]
    if options.quick:
        # These need no data but scikit-learn's.
        chosen, options.seeds = ["BatchNorm", "deep MLP"], 1
    names = options.tasks or chosen
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = [(name, factor, way, seed) for name in names for seed in seeds for factor in FACTORS for way in WAYS]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, seeds {list(seeds)}", flush=True)
    results: dict[tuple[str, int, str, int], Result] = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        for run, result in zip(runs, pool.map(train, *zip(*runs, strict=True)), strict=True):
            results[run] = result
            if options.said and result.said:
                print(run, f"{result.final:.3g}", *result.said, sep="\n    ", flush=True)
            if run == (run[0], FACTORS[-1], WAYS[-1], seeds[-1]):
                print_task(run[0], results, seeds)
    print_sums(results, names, seeds)


if __name__ == "__main__":
    main()
