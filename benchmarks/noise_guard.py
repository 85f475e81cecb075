"""What `Focus(noise_guard=True)` does to the accuracy, by losses alone and by the verdict with predictions.

    python benchmarks/noise_guard.py [--quick] [--task digits] [--cell clean] [--seeds 1 2] [--epochs 30] [--keep FILE]

Against a plain shuffle of as many visits, with the same seeds: first weights, wrong labels, orders. The tasks are
those of `benchmarks/labels.py`, scored on samples that were held out: 497 digits, 10,000 images of CIFAR-10. "right
labels alone" is the oracle: it knows which labels are wrong, and makes as many visits to the others. ``--keep`` takes
up the runs of a file, and adds to it. The rules were chosen on digits with seeds 100 to 103 and on CIFAR-10 with 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labels import CELLS as LABEL_CELLS
from labels import TASKS, Cell, Data, Task, pair_of, spoilt, taken_up
from labels import measured as judged
from learning_tasks import DATA, Indices
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from learnit_r8 import Focus, R8Scheduler, RateShape
from learnit_r8.torch.predictions import predictions_of

CELLS = (
    Cell("clean"),
    Cell("random 20 %", "random", 0.2),
    Cell("random 40 %", "random", 0.4),
    Cell("pairs 15 %", "pairs", 0.15),
    Cell("confusable 20 %", "confusable", 0.2),
)
QUICK = ("clean", "random 20 %")
SHUFFLE, BY_LOSSES, BY_VERDICT, WEIGHED = "shuffle", "guard, losses", "guard, verdict", "guard, weights"
RIGHT_ONLY = "right labels alone"
ARMS = (SHUFFLE, BY_LOSSES, BY_VERDICT, WEIGHED, RIGHT_ONLY)
GUARDS: dict[str, Any] = {BY_LOSSES: True, BY_VERDICT: True, WEIGHED: "weigh"}
HALF = 0.5
HALVED = "CIFAR-10, 16 x 16"
SEEDS = {"digits": tuple(range(300, 312)), "CIFAR-10": (1, 2, 3), HALVED: (1, 2, 3)}


def halved(seed: int, pair: tuple[int, int] | None) -> Data:
    """The images of CIFAR-10 with half as many pixels a side: a quarter of the work."""
    data = TASKS["CIFAR-10"].load(seed, pair)
    return data._replace(batch=lambda rows: functional.avg_pool2d(data.batch(rows), 2))


TASKS[HALVED] = TASKS["CIFAR-10"]._replace(load=halved)


def held_out(name: str, seed: int) -> tuple[Tensor, Indices]:
    """Inputs and right labels of samples that are not trained on."""
    if name == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        kept = np.random.default_rng([7, seed]).permutation(len(found.target))[1300:]
        return torch.from_numpy((found.data[kept] / 16).astype(np.float32)), found.target[kept]
    from learning_deep import images, normalised

    pixels, true = images("test", 10_000)
    x = normalised(pixels)
    return functional.avg_pool2d(x, 2) if name == HALVED else x, true


def scheduler(task: Task, given: Indices, arm: str, seed: int) -> R8Scheduler:
    """The run of one arm."""
    guard = GUARDS.get(arm)
    return R8Scheduler(
        len(given), batch_size=task.batch_size, num_epochs=task.epochs, initial_lr=task.lr,
        scheduler_mode=RateShape(warmup_proportion=task.warmup),
        policy=Focus(noise_guard=guard) if guard else "shuffle",
        groups=given if guard else None, seed=seed,
    )  # fmt: skip


def train(
    task: Task, data: Data, given: Indices, arm: str, seed: int, wrong: NDArray[np.bool_]
) -> tuple[nn.Module, list[list[int]]]:
    """A network trained to the end; and for each epoch how many samples were left out or weighed less than half, and
    how many of them wrongly labelled."""
    torch.manual_seed(seed)
    network, labels = task.network(data.num_classes), torch.from_numpy(given)
    optimizer = torch.optim.SGD(network.parameters(), lr=task.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    r8, left_out = scheduler(task, given, arm, seed), []
    for _ in range(task.epochs):
        counts = np.zeros(len(given), bool)
        for _ in range(r8.steps_per_epoch):
            ticket = r8.draw()
            weights = np.ones(len(ticket.indices), np.float32) if ticket.weights is None else ticket.weights
            counts[ticket.indices] = weights > HALF
            logits, targets = network(data.batch(ticket.indices)), labels[torch.from_numpy(ticket.indices)]
            losses = functional.cross_entropy(logits, targets, reduction="none")
            optimizer.param_groups[0]["lr"] = ticket.lr
            optimizer.zero_grad()
            (losses * torch.from_numpy(weights)).mean().backward()
            optimizer.step()
            predictions = predictions_of(logits, targets) if arm in (BY_VERDICT, WEIGHED) else None
            r8.report(ticket, losses.detach().numpy(), predictions=predictions)
        left_out.append([int((~counts).sum()), int((~counts & wrong).sum())])
    return network, left_out


def measured(
    name: str, cell: Cell, arm: str, seed: int, confusions: dict[tuple[str, int], Any], epochs: int
) -> dict[str, Any]:
    """All figures of one run of so many epochs; the confusions are those of a network of the usual ones."""
    task = TASKS[name]
    data = task.load(seed, pair_of(seed) if cell.pair else None)
    if cell.noise == "confusable" and (name, seed) not in confusions:
        judged(name, LABEL_CELLS[0], seed, confusions)
    given = spoilt(data, cell, seed, confusions.get((name, seed)))
    wrong, task = given != data.true, task._replace(epochs=epochs)
    if arm == RIGHT_ONLY:
        kept = np.flatnonzero(~wrong)
        batch = data.batch
        data = Data(lambda rows: batch(kept[rows]), data.true[kept], data.num_classes)
        task = task._replace(epochs=round(task.epochs * len(wrong) / len(kept)))
        given, wrong = given[kept], wrong[kept]
    network, left_out = train(task, data, given, arm, seed, wrong)
    x, true = held_out(name, seed)
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(part) for part in x.split(500)]).argmax(1).numpy()
    accuracy = float((found == true).mean())
    return {
        "task": name, "cell": cell.name, "arm": arm, "seed": seed, "epochs": epochs, "accuracy": accuracy,
        "wrong": int(wrong.sum()), "left_out": left_out,
    }  # fmt: skip


def show(runs: list[dict[str, Any]]) -> None:
    """Accuracies, their paired differences to the shuffle with standard errors, and who was left out at the end."""
    print(f"{'task':17} {'labels':15} {'way':20} {'accuracy':10} {'against shuffle':26} out in the last epoch")
    keys = [(run["task"], run["epochs"], run["cell"]) for run in runs]
    for key, arm in itertools.product(dict.fromkeys(keys), ARMS):
        of_cell = [run for run, its in zip(runs, keys, strict=True) if its == key]
        found = {run["seed"]: run for run in of_cell if run["arm"] == arm}
        base = {run["seed"]: run for run in of_cell if run["arm"] == SHUFFLE}
        if not found:
            continue
        mean = statistics.mean(run["accuracy"] for run in found.values())
        gains = [100 * (run["accuracy"] - base[seed]["accuracy"]) for seed, run in found.items() if seed in base]
        text = ""
        if arm != SHUFFLE and len(gains) > 1:
            text = f"{statistics.mean(gains):+.2f} +- {statistics.stdev(gains) / math.sqrt(len(gains)):.2f} points"
        elif arm != SHUFFLE and gains:
            text = f"{gains[0]:+.2f} points"
        out = [statistics.mean(run["left_out"][-1][part] for run in found.values()) for part in (0, 1)]
        wrong = statistics.mean(run["wrong"] for run in found.values())
        print(
            f"{key[0]:17} {key[2]:15} {arm:20} {mean:.2%}     {text:20} n={len(found):3} "
            f"{out[0]:6.0f}, {out[1]:.0f} of them wrong, of {wrong:.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits alone, three seeds, two kinds of labels")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--cell", choices=[cell.name for cell in CELLS], action="append")
    parser.add_argument("--arm", choices=ARMS, action="append")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--epochs", type=int, help="of every run, in place of the task's own")
    parser.add_argument("--keep", type=Path, help="file of runs, to take up and to add to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs, confusions = taken_up(options.keep), {}  # type: ignore[var-annotated]
    done = {(run["task"], run["epochs"], run["cell"], run["arm"], run["seed"]) for run in runs}
    for name in options.task or (["digits"] if options.quick else TASKS):
        if name != "digits" and not (DATA / "cifar10_jpeg.npz").is_file():
            print(f"CIFAR-10 is left out: no cifar10_jpeg.npz in {DATA}; LEARNIT_R8_DATA says where it is.")
            continue
        chosen = options.cell or (QUICK if options.quick else [cell.name for cell in CELLS])
        seeds = options.seeds or (SEEDS[name][:3] if options.quick else SEEDS[name])
        epochs = options.epochs or TASKS[name].epochs
        for seed, cell, arm in itertools.product(seeds, CELLS, options.arm or ARMS):
            if cell.name in chosen and (name, epochs, cell.name, arm, seed) not in done:
                runs.append(measured(name, cell, arm, seed, confusions, epochs))
                if options.keep is not None:
                    with options.keep.open("a") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
    show(runs)


if __name__ == "__main__":
    main()
