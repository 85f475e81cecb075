"""How well the sample table ranks the samples by their true loss, for every way to report and to estimate losses.

Trains the network of ``recipe.py`` and, after epochs 5, 10, 20 and 50, compares the table with the loss that every
training sample has with the weights of that moment: Spearman's rank correlation, mean and standard deviation over
the seeds; 0 is chance. At rate 0.1 the training with batches of 8 is unstable (single losses in the hundreds, then
batch losses of exactly 0), and no estimator copes.

    python benchmarks/estimators.py [--quick] [--seeds 8] [--first-seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from recipe import NUM_EPOCHS, Data, Network, load_data, make_scheduler, train

# isort: split
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Doubles = NDArray[np.float64]

EPOCHS = (5, 10, 20, NUM_EPOCHS)
RATES = (0.1, 0.02)


class Case(NamedTuple):
    """One way to train and report; ``part_size`` as in `recipe.train`."""

    label: str
    policy: str
    batch_size: int = 32
    part_size: int | None = None
    estimator: str = "relative"


CASES = (
    Case("relative (default)", "balanced"),
    Case("relative", "shuffle"),
    Case("additive (the seed's)", "balanced", estimator="additive"),
    Case("additive (the seed's)", "shuffle", estimator="additive"),
    Case("per-sample losses", "balanced", part_size=1),
    Case("parts of 2", "balanced", part_size=2),
    Case("parts of 4", "balanced", part_size=4),
    Case("relative", "balanced", batch_size=8),
    Case("relative", "balanced", batch_size=16),
    Case("relative", "balanced", batch_size=64),
)


def correlations(case: Case, data: Data, seed: int, lr: float, epochs: Sequence[int]) -> list[float]:
    """One run: the correlation after each of ``epochs``."""
    r8 = make_scheduler(
        seed, batch_size=case.batch_size, initial_lr=lr, num_epochs=epochs[-1], policy=case.policy,
        estimator=case.estimator,
    )  # fmt: skip
    network = Network(seed)
    return [
        spearmanr(r8.table.loss, network.losses(data.pixels, data.labels)).statistic
        for epoch in train(r8, network, data, part_size=case.part_size)
        if epoch in epochs
    ]


def measure(case: Case, data: Sequence[Data], first_seed: int, epochs: Sequence[int]) -> Doubles:
    """float64[seeds, rates * epochs]."""
    return np.array([
        [value for lr in RATES for value in correlations(case, split, seed, lr, epochs)]
        for seed, split in enumerate(data, start=first_seed)
    ])  # fmt: skip


def print_row(case: Case, values: Doubles) -> None:
    cells = [
        f"{mean:5.2f} ±{spread:4.2f}" for mean, spread in zip(values.mean(axis=0), values.std(axis=0), strict=True)
    ]
    print(f"| {case.label:24} | {case.policy:8} | {case.batch_size:2} | " + " | ".join(cells) + " |", flush=True)


def print_head(num_seeds: int, epochs: Sequence[int]) -> None:
    print(f"Spearman correlation of estimated and true losses, mean ± standard deviation over {num_seeds} seeds")
    columns = [f"lr {lr:g} ep {epoch}".rjust(11) for lr in RATES for epoch in epochs]
    print(f"| {'estimator, reports':24} | {'policy':8} |  B | " + " | ".join(columns) + " |")
    print("|" + "---|" * (3 + len(columns)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 10 epochs")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options: Any = parse()
    num_seeds, epochs = (2, (5, 10)) if options.quick else (options.seeds, EPOCHS)
    data = [load_data(seed) for seed in range(options.first_seed, options.first_seed + num_seeds)]
    print_head(num_seeds, epochs)
    for case in CASES:
        print_row(case, measure(case, data, options.first_seed, epochs))


if __name__ == "__main__":
    main()
