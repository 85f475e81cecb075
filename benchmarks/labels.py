"""What `SampleTable.suspects` finds with predictions: precision and recall of its lists, beside a rival.

    python benchmarks/labels.py [--quick] [--task digits] [--seeds 1 2 3] [--runs 3] [--bfloat16] [--keep FILE]
    python benchmarks/labels.py --cost

Digits: 1,300 of scikit-learn's, a perceptron, 20 epochs, asked after 5. CIFAR-10: 10,000 images, three convolutions,
12 epochs, asked at the end, where the network is far from fitting (accuracy .6 to .7); needs LEARNIT_R8_DATA. "pairs":
classes become the next one; "confusable": wrong labels are drawn by what a network trained on the right ones confuses;
"2 classes": only two of the classes; "50 epochs": asked at the end of so many, when the network knows its labels by
heart. The rival, from the same run, is confident learning on the mean probabilities in training (Northcutt et al.,
arXiv:1911.00068). The rules were chosen on CIFAR-10 with seed 0 and
digits with seeds 100 to 105; those are never run here. ``--keep`` takes up the runs of a file, and adds to it;
``--runs`` trains several networks on the same labels, which then count together.
``--bfloat16`` computes the network in bfloat16, in half the time where the processor can.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from learning_tasks import DATA, Indices
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from learnit_r8 import R8Scheduler, RateShape
from learnit_r8.torch.predictions import pack, predictions_of

PRECISIONS = (0.5, 0.7, 0.9)


class Data(NamedTuple):
    """Samples and their right labels.

    Attributes:
        batch: Gives the network's input for indices.
        true: int64[N].
        num_classes: C.
    """

    batch: Callable[[Indices], Tensor]
    true: Indices
    num_classes: int


class Task(NamedTuple):
    """A data set, a network and its training.

    Attributes:
        load: Gives the data of a seed; of these two classes alone, if they are given.
        network: Makes the network for a number of classes.
        epochs, batch_size, lr, warmup: Of the training.
        asked: Epochs after which the suspects are asked for.
        seeds: Of the whole run.
        is_brief: Whether the network is computed in bfloat16.
    """

    load: Callable[[int, tuple[int, int] | None], Data]
    network: Callable[[int], nn.Module]
    epochs: int
    batch_size: int
    lr: float
    warmup: float | None
    asked: int
    seeds: tuple[int, ...]
    is_brief: bool = False


class Cell(NamedTuple):
    """What is done to the labels: a kind of noise, its share, and the epochs after which to ask, 0 for the usual."""

    name: str
    noise: str = ""
    share: float = 0.0
    asked: int = 0
    pair: bool = False


CELLS = (
    Cell("clean"),
    Cell("clean, 4 epochs", asked=4),
    Cell("random 1.4 %", "random", 0.014),
    Cell("random 10 %", "random", 0.1),
    Cell("random 20 %", "random", 0.2),
    Cell("random 40 %", "random", 0.4),
    Cell("pairs 15 %", "pairs", 0.15),
    Cell("confusable 20 %", "confusable", 0.2),
    Cell("confusable 9 %", "confusable", 0.09),
    Cell("2 classes, clean", pair=True),
    Cell("2 classes, random 10 %", "random", 0.1, pair=True),
    Cell("clean, 50 epochs", asked=50),
    Cell("random 10 %, 50 epochs", "random", 0.1, asked=50),
    Cell("random 10 %, 200 epochs", "random", 0.1, asked=200),
)
QUICK = ("clean", "random 10 %", "pairs 15 %", "2 classes, random 10 %")


def digits(seed: int, pair: tuple[int, int] | None) -> Data:
    """1,300 of the digits, chosen by the seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = np.random.default_rng([7, seed]).permutation(len(found.target))[:1300]
    pixels, true = (found.data[chosen] / 16).astype(np.float32), found.target[chosen].astype(np.int64)
    kept, true = of_pair(true, pair)
    x = torch.from_numpy(pixels[kept])
    return Data(lambda rows: x[torch.from_numpy(rows)], true, 10 if pair is None else 2)


def cifar(seed: int, pair: tuple[int, int] | None) -> Data:
    """The first 10,000 images, mirrored and shifted at random, a whole batch alike."""
    from learning_deep import images, normalised

    pixels, true = images("train", 10_000)
    kept, true = of_pair(true, pair)
    x, rng = normalised(pixels[torch.from_numpy(kept)]), np.random.default_rng([3, seed])

    def batch(rows: Indices) -> Tensor:
        part = x[torch.from_numpy(rows)]
        part = part.flip(3) if rng.random() < 0.5 else part
        return torch.roll(part, tuple(rng.integers(-3, 4, 2).tolist()), (2, 3))

    return Data(batch, true, 10 if pair is None else 2)


def of_pair(true: Indices, pair: tuple[int, int] | None) -> tuple[Indices, Indices]:
    """The samples of two classes, and their labels 0 and 1; all samples, if there is no pair."""
    if pair is None:
        return np.arange(len(true)), true
    kept = np.flatnonzero(np.isin(true, pair))
    return kept, (true[kept] == pair[1]).astype(np.int64)


def perceptron(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, classes))


def convolutions(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((3, 32, 64, 128)):
        pool = nn.MaxPool2d(2) if after < 128 else nn.AdaptiveAvgPool2d(2)
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), pool]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, classes)).to(memory_format=torch.channels_last)


TASKS = {
    "digits": Task(digits, perceptron, 20, 32, 0.1, None, 5, tuple(range(300, 310))),
    "CIFAR-10": Task(cifar, convolutions, 12, 64, 0.1, 0.2, 12, (1, 2, 3)),
}


def confidently_wrong(chance: NDArray[Any], given: Indices) -> NDArray[np.bool_]:
    """bool[N], whose mean probability of another class is at least that class's own mean one; of sums, float[N, C]."""
    chance = chance / chance.sum(1, keepdims=True)
    least = np.array([chance[given == c, c].mean() for c in range(chance.shape[1])])
    sure = np.where(chance >= least, chance, 0)
    found: NDArray[np.bool_] = (sure.max(1) > 0) & (sure.argmax(1) != given)
    return found


def spoilt(data: Data, cell: Cell, seed: int, confusion: NDArray[Any] | None) -> Indices:
    """int64[N], the labels to train on."""
    rng, true = np.random.default_rng([9, seed]), data.true
    chosen = rng.random(len(true)) < cell.share
    step = rng.integers(1, data.num_classes, len(true)) if cell.noise == "random" else 1
    other = (true + step) % data.num_classes
    if cell.noise == "confusable":
        assert confusion is not None
        other = (confusion[true].cumsum(1) < rng.random(len(true))[:, None]).sum(1).clip(0, data.num_classes - 1)
    return np.where(chosen, other, true)


class Learner:
    """A network that is trained on batches."""

    def __init__(self, task: Task, data: Data, labels: Tensor, seed: int) -> None:
        torch.manual_seed(seed)
        self.data, self.labels, self.network = data, labels, task.network(data.num_classes)
        self.is_brief = task.is_brief
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=task.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    def step(self, rows: Indices, lr: float) -> Tensor:
        """float32[B, C], the logits before the step."""
        with torch.autocast("cpu", torch.bfloat16, self.is_brief):
            logits: Tensor = self.network(self.data.batch(rows))
        logits = logits.float()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        functional.cross_entropy(logits, self.labels[torch.from_numpy(rows)]).backward()
        self.optimizer.step()
        return logits.detach()


def train(task: Task, data: Data, given: Indices, cell: Cell, seed: int) -> tuple[R8Scheduler, NDArray[Any]]:
    """Train up to the epoch in which the suspects are asked for; with the sums of each sample's probabilities."""
    asked = cell.asked or task.asked
    epochs = max(asked, task.epochs if not cell.asked else 0)
    r8 = R8Scheduler(
        len(given), batch_size=task.batch_size, num_epochs=epochs, initial_lr=task.lr,
        scheduler_mode=RateShape(warmup_proportion=task.warmup),
        policy="shuffle", seed=seed,
    )  # fmt: skip
    chance, labels = np.zeros((len(given), data.num_classes)), torch.from_numpy(given)
    learner = Learner(task, data, labels, seed)
    while r8.global_step < asked * r8.steps_per_epoch:
        ticket = r8.draw()
        logits, targets = learner.step(ticket.indices, ticket.lr), labels[torch.from_numpy(ticket.indices)]
        losses = functional.cross_entropy(logits, targets, reduction="none")
        r8.report(ticket, losses.numpy(), predictions=predictions_of(logits, targets))
        chance[ticket.indices] += functional.softmax(logits, 1).numpy()
    return r8, chance


def pair_of(seed: int) -> tuple[int, int]:
    """Two classes, other ones for each seed."""
    first, second = np.random.default_rng([13, seed]).permutation(10)[:2].tolist()
    return first, second


def measured(
    name: str, cell: Cell, seed: int, confusions: dict[tuple[str, int], Any], num_runs: int = 1
) -> dict[str, Any]:
    """All figures of one run; its lists and suggestions are those of several runs on its labels, if there are more."""
    task = TASKS[name]
    data = task.load(seed, pair_of(seed) if cell.pair else None)
    if cell.noise == "confusable" and (name, seed) not in confusions:
        measured(name, CELLS[0], seed, confusions)
    given = spoilt(data, cell, seed, confusions.get((name, seed)))
    trained = [train(task, data, given, cell, seed + more) for more in range(0, 1000 * num_runs, 1000)]
    (r8, chance), others = trained[0], [other for other, _ in trained[1:]]
    if cell == CELLS[0]:
        confusions[name, seed] = confusion_of(chance, data.true)
    wrong = given != data.true
    lists = {str(asked): r8.table.suspects(asked, runs=others) for asked in PRECISIONS}
    half, confident = lists["0.5"], confidently_wrong(chance, given)
    found = wrong[half.indices]
    sure = found & (2 * half.votes >= num_runs * r8.table.usage_count[half.indices])
    return {
        "task": name,
        "cell": cell.name,
        "seed": seed,
        "runs": num_runs,
        "bfloat16": task.is_brief,
        "size": len(given),
        "wrong": int(wrong.sum()),
        "method": half.method,
        "lists": {asked: [len(one.indices), int(wrong[one.indices].sum())] for asked, one in lists.items()},
        "confident": [int(confident.sum()), int((confident & wrong).sum())],
        "suggested": [int((half.suggested == data.true[half.indices])[found].sum()), int(found.sum())],
        "suggested by most": [int((half.suggested == data.true[half.indices])[sure].sum()), int(sure.sum())],
        "suggested of all": [int((r8.table.suggested == data.true)[wrong].sum()), int(wrong.sum())],
        "noise": [half.noise_rate, *half.noise_range],
    }


def confusion_of(chance: NDArray[Any], true: Indices) -> NDArray[Any]:
    """float64[C, C], how probable each other class is for the samples of a class; rows sum to 1."""
    rows = np.stack([chance[true == c].mean(0) for c in range(chance.shape[1])])
    np.fill_diagonal(rows, 0)
    found: NDArray[Any] = rows / rows.sum(1, keepdims=True)
    return found


def pooled(runs: list[dict[str, Any]]) -> list[str]:
    """The figures of one cell over its seeds: for each precision asked, flagged, precision and recall."""
    size, wrong = sum(run["size"] for run in runs), sum(run["wrong"] for run in runs)
    texts = []
    for asked in PRECISIONS:
        listed, found = (sum(run["lists"][str(asked)][part] for run in runs) for part in (0, 1))
        if not wrong or not listed:
            texts.append(f"{listed / size:.2%} flagged")
            continue
        # One-sided, 5 %; samples of one run are taken for independent.
        short = (asked * listed - found) / math.sqrt(listed * asked * (1 - asked))
        texts.append(f"{listed:5} p {found / listed:.2f}{' SHORT' if short > 1.64 else ''} r {found / wrong:.2f}")
    return texts


def show(name: str, runs: list[dict[str, Any]]) -> None:
    print(f"\n{name}, {len({run['seed'] for run in runs})} seeds, precision p, recall r, pooled; SHORT: clearly less")
    print(f"{'labels':24} {'asked .5':22} {'asked .7':22} {'asked .9':22} {'confident learning':18} {'suggested'}")
    for cell in CELLS:
        of_cell = [run for run in runs if run["cell"] == cell.name]
        if not of_cell:
            continue
        confident = [sum(run["confident"][part] for run in of_cell) for part in (0, 1)]
        wrong = sum(run["wrong"] for run in of_cell)
        rival = f"p {confident[1] / max(1, confident[0]):.2f} r {confident[1] / wrong:.2f}" if wrong else (
            f"{confident[0] / sum(run['size'] for run in of_cell):.2%} flagged"
        )  # fmt: skip
        rights = [sum(run["suggested"][part] for run in of_cell) for part in (0, 1)]
        methods = "/".join(sorted({run["method"] for run in of_cell} - {""}))
        right = f"{rights[0] / rights[1]:.2f}, by {methods}" if rights[1] else ""
        print(f"{cell.name:24} " + " ".join(f"{text:22}" for text in pooled(of_cell)) + f" {rival:18} {right}")


def cost() -> None:
    """CPU time of a step with predictions against others, on the CIFAR-10 network: 15 rounds of 5 steps.

    Cross-validation takes five such trainings without R8, on data of the same size in all.
    """
    task, ways = TASKS["CIFAR-10"], ("without R8", "with losses alone", "with predictions")
    network, labels = task.network(10), torch.arange(64) % 10
    x = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    runs = {way: R8Scheduler(64_000, batch_size=64, num_epochs=5, policy="shuffle") for way in ways[1:]}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _, way in itertools.product(range(15), ways):
        r8, began = runs.get(way), time.process_time()
        for _ in range(5):
            ticket = r8.draw() if r8 is not None else None
            logits = network(x)
            losses = functional.cross_entropy(logits, labels, reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            if r8 is not None and way == ways[-1]:
                packed = pack(losses.detach(), (predictions := predictions_of(logits, labels))).numpy()
                values, on_host = predictions.unpack(packed, 10)
                r8.report(ticket, values, predictions=on_host)
            elif r8 is not None:
                r8.report(ticket, losses.detach().numpy())
        times[way].append(time.process_time() - began)
    for way in ways[:-1]:
        ratios = np.divide(times[ways[-1]], times[way])
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        print(f"a step with predictions over one {way}: {middle:.3f} x [{low:.3f} .. {high:.3f}], 15 rounds")


def taken_up(path: Path | None) -> list[dict[str, Any]]:
    """The runs in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []


def run_all(name: str, cells: Iterable[Cell], seeds: Iterable[int], path: Path | None, num_runs: int) -> None:
    """Run what is not in the file yet, and show all of the task with as many runs."""
    confusions: dict[tuple[str, int], Any] = {}
    kind = (num_runs, TASKS[name].is_brief)
    every = [{"runs": 1, "bfloat16": False, **run} for run in taken_up(path)]
    runs = [run for run in every if (run["runs"], run["bfloat16"]) == kind]
    done = {(run["task"], run["cell"], run["seed"]) for run in runs}
    for seed, cell in itertools.product(seeds, cells):
        if (name, cell.name, seed) not in done:
            runs.append(measured(name, cell, seed, confusions, num_runs))
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    show(name, [run for run in runs if run["task"] == name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits alone, three seeds, four kinds of labels")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--cell", choices=[cell.name for cell in CELLS], action="append")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--runs", type=int, default=1, help="networks on the same labels, which count together")
    parser.add_argument("--bfloat16", action="store_true", help="compute the network in bfloat16")
    parser.add_argument("--keep", type=Path, help="file of runs, to take up and to add to")
    parser.add_argument("--cost", action="store_true", help="the time of a step, and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.cost:
        cost()
        return
    for name in given.task or (["digits"] if given.quick else TASKS):
        if name == "CIFAR-10" and not (DATA / "cifar10_jpeg.npz").is_file():
            print(f"CIFAR-10 is left out: no cifar10_jpeg.npz in {DATA}; LEARNIT_R8_DATA says where it is.")
            continue
        TASKS[name] = TASKS[name]._replace(is_brief=given.bfloat16)
        usual = [cell.name for cell in CELLS if name == "digits" or cell.asked < TASKS[name].epochs]
        chosen = given.cell or (QUICK if given.quick else usual)
        seeds = given.seeds or (TASKS[name].seeds[:3] if given.quick else TASKS[name].seeds)
        run_all(name, [cell for cell in CELLS if cell.name in chosen], seeds, given.keep, given.runs)


if __name__ == "__main__":
    main()
