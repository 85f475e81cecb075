"""How well the sample table ranks the samples by their true loss, for every way to report and to estimate losses.

Trains the network of ``recipe.py`` and, after epochs 5, 10, 20 and 50, compares the table with the loss that every
training sample has with the weights of that moment: Spearman's rank correlation, mean and standard deviation over
the seeds; 0 is chance. Peers, rules from elsewhere, watch the batch means of the same run, so that within a block of
the table all see the same batches; what is drawn depends on the table only, never on a peer. At rate 0.1 the training
with batches of 8 is unstable (single losses in the hundreds, then batch losses of exactly 0), and no estimator copes.

    python benchmarks/estimators.py [--quick] [--seeds 8] [--first-seed 0]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from recipe import NUM_EPOCHS, NUM_TRAINING, Data, Network, Step, load_data, make_scheduler, spearman, train

# isort: split
import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

EPOCHS = (5, 10, 20, NUM_EPOCHS)
RATES = (0.1, 0.02)


class Peer(Protocol):
    """An estimator that watches batch means."""

    def observe(self, indices: NDArray[np.int64], mean: float) -> None:
        """Learn from one batch."""

    def ranking(self) -> Doubles:
        """float64[N], higher for samples thought to have a higher loss; its unit does not matter."""


class BatchLossScore:
    """Moving average of the batch losses a sample was part of, with nothing taken off.

    Source: Zhou et al., "Batch Loss Score", arXiv 2604.04681; the weight of a new loss is that of their code. We
    begin with a plain mean.
    """

    def __init__(self, num_samples: int, alpha: float = 0.3) -> None:
        self._score = np.zeros(num_samples)
        self._count = np.zeros(num_samples)
        self._alpha = alpha

    def observe(self, indices: NDArray[np.int64], mean: float) -> None:
        """Learn from one batch."""
        self._count[indices] += 1
        weight = np.maximum(self._alpha, 1 / self._count[indices])
        self._score[indices] += weight * (mean - self._score[indices])

    def ranking(self) -> Doubles:
        """float64[N], the scores."""
        return self._score


class Trend:
    """Moving average of the batch losses over half an epoch, the same as the table's.

    Args:
        batch_size: B.
    """

    def __init__(self, batch_size: int) -> None:
        self._weight = 2 / (NUM_TRAINING / (2 * batch_size) + 1)
        self._count = 0
        self._value = 0.0

    def ratio(self, mean: float) -> float:
        """A batch loss over the trend before it, which it then moves on."""
        self._count += 1
        trend = self._value if self._count > 1 else mean
        self._value = trend + max(self._weight, 1 / self._count) * (mean - trend)
        return mean / max(trend, 1e-30)


class DetrendedAverage:
    """Moving average of the batch losses a sample was part of, each divided by the trend."""

    def __init__(self, num_samples: int, batch_size: int, alpha: float = 0.1) -> None:
        self._trend = Trend(batch_size)
        self._average = BatchLossScore(num_samples, alpha)

    def observe(self, indices: NDArray[np.int64], mean: float) -> None:
        """Learn from one batch."""
        self._average.observe(indices, self._trend.ratio(mean))

    def ranking(self) -> Doubles:
        """float64[N], the averages."""
        return self._average.ranking()


class Kalman:
    """One scalar Kalman step a sample on the detrended batch loss; large estimates are less certain, so they move more.

    The prior variance of a sample's share is ``(0.3 + share)**2``, the noise of a mean that of 0.3 samples.
    """

    def __init__(self, num_samples: int, batch_size: int, noise: float = 0.3) -> None:
        self._trend = Trend(batch_size)
        self._share = np.ones(num_samples)
        self._noise = noise

    def observe(self, indices: NDArray[np.int64], mean: float) -> None:
        """Learn from one batch."""
        share = self._share[indices]
        variance = (0.3 + share) ** 2
        gain = variance / variance.mean() / (1 + self._noise)
        self._share[indices] = np.maximum(share + gain * (self._trend.ratio(mean) - share.mean()), 0)

    def ranking(self) -> Doubles:
        """float64[N], loss over trend."""
        return self._share


class WithoutLeak:
    """The table's "relative" rule without moving the shares back towards 1 first: what the leak is worth."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self._trend = Trend(batch_size)
        self._share = np.ones(num_samples)

    def observe(self, indices: NDArray[np.int64], mean: float) -> None:
        """Learn from one batch."""
        share = self._share[indices]
        factor = np.clip(self._trend.ratio(mean) / share.mean(), 0.1, 10)
        self._share[indices] = np.clip(share * factor, 1e-4, 50)

    def ranking(self) -> Doubles:
        """float64[N], loss over trend."""
        return self._share


def make_peers(batch_size: int) -> dict[str, Peer]:
    """The peers that every run reporting batch means is watched by."""
    return {
        "peer: batch loss score": BatchLossScore(NUM_TRAINING),
        "peer: detrended average": DetrendedAverage(NUM_TRAINING, batch_size),
        "peer: Kalman": Kalman(NUM_TRAINING, batch_size),
        "relative without its leak": WithoutLeak(NUM_TRAINING, batch_size),
    }


class Case(NamedTuple):
    """One way to train and report; ``part_size`` as in `recipe.train`."""

    label: str
    policy: str
    batch_size: int = 32
    part_size: int | None = None
    estimator: str = "relative"
    has_peers: bool = False


CASES = (
    Case("relative (default)", "balanced", has_peers=True),
    Case("relative", "shuffle", has_peers=True),
    Case("additive (the seed's)", "balanced", estimator="additive"),
    Case("additive (the seed's)", "shuffle", estimator="additive"),
    Case("per-sample losses", "balanced", part_size=1),
    Case("parts of 2", "balanced", part_size=2),
    Case("parts of 4", "balanced", part_size=4),
    Case("relative", "balanced", batch_size=8),
    Case("relative", "balanced", batch_size=16),
    Case("relative", "balanced", batch_size=64, has_peers=True),
)


def correlations(case: Case, data: Data, seed: int, lr: float, epochs: Sequence[int]) -> dict[str, list[float]]:
    """One run: for the table and for each peer, the correlation after each of ``epochs``."""
    r8 = make_scheduler(
        seed,
        batch_size=case.batch_size,
        initial_lr=lr,
        num_epochs=epochs[-1],
        policy=case.policy,
        estimator=case.estimator,
    )
    network = Network(seed)
    peers = make_peers(case.batch_size) if case.has_peers else {}
    watchers = [_watcher(peer) for peer in peers.values()]
    found: dict[str, list[float]] = {name: [] for name in [case.label, *peers]}
    for epoch in train(r8, network, data, part_size=case.part_size, watchers=watchers):
        if epoch in epochs:
            true = network.losses(data.pixels, data.labels)
            found[case.label].append(spearman(r8.table.loss, true))
            for name, peer in peers.items():
                found[name].append(spearman(peer.ranking(), true))
    return found


def _watcher(peer: Peer) -> Callable[[Step], None]:
    def watch(step: Step) -> None:
        peer.observe(step.indices, float(step.losses.mean(dtype=np.float64)))

    return watch


def measure(case: Case, data: Sequence[Data], first_seed: int, epochs: Sequence[int]) -> dict[str, Doubles]:
    """For the table and for each peer, float64[seeds, rates * epochs]."""
    runs = [
        [correlations(case, split, seed, lr, epochs) for lr in RATES]
        for seed, split in enumerate(data, start=first_seed)
    ]
    return {
        name: np.array([[value for found in rates for value in found[name]] for rates in runs]) for name in runs[0][0]
    }


def print_row(label: str, case: Case, values: Doubles) -> None:
    cells = [
        f"{mean:5.2f} ±{spread:4.2f}" for mean, spread in zip(values.mean(axis=0), values.std(axis=0), strict=True)
    ]
    print(f"| {label:24} | {case.policy:8} | {case.batch_size:2} | " + " | ".join(cells) + " |", flush=True)


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
        for label, values in measure(case, data, options.first_seed, epochs).items():
            print_row(label, case, values)


if __name__ == "__main__":
    main()
