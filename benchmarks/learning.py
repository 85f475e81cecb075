"""What policies do to the accuracy, against the only fair baseline: a plain shuffle with as many visits.

    python benchmarks/learning.py [--quick] [--seeds K]

The digits and the perceptron of benchmarks/suspects.py. Every number is the accuracy on held-out digits less that of
"shuffle" with the same split, seed and number of visits, its learning rate schedule compressed to them: the mean over
the seeds and its standard error, in points. A p below 0.05 after Holm's correction over all cells of a policy is marked
with *: there it is significantly worse. The gates were tuned on seeds 100 to 107 and 200 to 207; these are 300 and up.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from scipy.stats import ttest_1samp
from suspects import Digits, train

from learnit_r8 import Focus, Policy

POLICIES: dict[str, tuple[str | Policy, bool]] = {
    "balanced": ("balanced", False),
    "focus": (Focus(), False),
    "focus, guard": (Focus(noise_guard=True), False),
    "focus, guard, groups": (Focus(noise_guard=True), True),
}
TASKS = {
    "clean": (0.0, 1.0),
    "5 % wrong": (0.05, 1.0),
    "20 % wrong": (0.2, 1.0),
    "40 % wrong": (0.4, 1.0),
    "rare classes": (0.0, 0.1),
    "rare, 20 % wrong": (0.2, 0.1),
}
BUDGETS = (5, 10, 20)
"""Epochs: 25, 50 and 100 % of the usual visits."""


def accuracy(task: str, seed: int, epochs: int, policy: str | Policy, groups: bool) -> float:
    wrong, rarest = TASKS[task]
    data = Digits(seed, wrong=wrong, rarest=rarest)
    _, model = train(data, seed, epochs=epochs, policy=policy, groups=groups)
    with torch.no_grad():
        return 100 * float((model(data.test_x).argmax(1) == data.test_y).float().mean())


def worse(differences: list[float]) -> float:
    """One-sided p of a t test that the mean is below zero."""
    return 1.0 if len(set(differences)) == 1 else float(ttest_1samp(differences, 0, alternative="less").pvalue)


def holm(p_values: list[float]) -> list[bool]:
    """Which are significant at 0.05, all together."""
    ranked = sorted(range(len(p_values)), key=p_values.__getitem__)
    significant = [False] * len(p_values)
    for rank, number in enumerate(ranked):
        if p_values[number] >= 0.05 / (len(p_values) - rank):
            break
        significant[number] = True
    return significant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds and two tasks: shows that it runs")
    parser.add_argument("--seeds", type=int, default=20, help="seeds, and splits of the data (default 20)")
    arguments = parser.parse_args()
    seeds = range(300, 302 if arguments.quick else 300 + arguments.seeds)
    tasks, budgets = (["clean", "20 % wrong"], (5,)) if arguments.quick else (list(TASKS), BUDGETS)
    torch.set_num_threads(1)
    cells: dict[str, list[tuple[str, int, float, list[float]]]] = {name: [] for name in POLICIES}
    for task in tasks:
        for epochs in budgets:
            plain = [accuracy(task, seed, epochs, "shuffle", False) for seed in seeds]
            for name, (policy, groups) in POLICIES.items():
                ours = [accuracy(task, seed, epochs, policy, groups) for seed in seeds]
                differences = [a - b for a, b in zip(ours, plain, strict=True)]
                cells[name].append((task, epochs, statistics.mean(plain), differences))
    report(cells, len(seeds))


def report(cells: dict[str, list[tuple[str, int, float, list[float]]]], count: int) -> None:
    print(f"digits, {count} seeds: accuracy less that of a plain shuffle with as many visits, points +- standard error")
    print(f"{'task':18} {'epochs':>6} {'shuffle':>8} " + " ".join(f"{name:>22}" for name in cells))
    marks = {name: holm([worse(row[3]) for row in rows]) for name, rows in cells.items()}
    for number, (task, epochs, plain, _) in enumerate(cells["balanced"]):
        columns = []
        for name, rows in cells.items():
            differences = rows[number][3]
            error = statistics.stdev(differences) / math.sqrt(count)
            star = "*" if marks[name][number] else " "
            columns.append(f"{statistics.mean(differences):+.2f} +- {error:.2f}{star}")
        print(f"{task:18} {epochs:>6} {plain:>8.2f} " + " ".join(f"{column:>22}" for column in columns))


if __name__ == "__main__":
    main()
