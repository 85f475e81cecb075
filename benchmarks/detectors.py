"""False alarms on losses that are as they should be, of SpikeGuard and of other tools' rules.

Nine kinds of healthy losses are drawn at random (A to J of the reliability research, 1e6 steps each by default), and
one with regime changes (G), which are no damage but look like it. H is what a scheduler that draws easy and hard
batches makes: the guard is told what each batch was expected to lose, with an error of 20 %, as the table would; the
other rules cannot be. Counted per 1e6 steps; an alarm silences its run for 32 steps. For the guard, all refusals are
shown (spikes, raised levels and lasting drifts), and those for lasting drifts once more. F is what restarts of a
schedule make, with the guard told of the rate and, as by a user's own schedule, not told.

    python benchmarks/detectors.py                all of it, 1e6 steps a kind, about ten minutes
    python benchmarks/detectors.py --quick        20,000 steps a kind, under half a minute
    python benchmarks/detectors.py --seed 7       other random numbers
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from peer_rules import PEERS, first_alarms

from learnit_r8 import SpikeGuard, Verdict

Losses = NDArray[np.float64]
MUST, AIM = 6.0, 1.0
"""Refusals per 1e6 steps, on every kind but F and G."""
NO_FIGURE = "FG"


class Kind(NamedTuple):
    """Healthy losses, float64[R, steps]; if it is known, what was expected of each batch and of a typical one, and the
    scheduled learning rate.
    """

    name: str
    losses: Losses
    expected: Losses | None = None
    typical: Losses | None = None
    lr: Losses | None = None


def kinds(seed: int, runs: int, steps: int) -> list[Kind]:
    """All kinds of healthy losses, around a falling mean."""
    random, size = np.random.default_rng(seed), (runs, steps)
    step = np.arange(steps)[None, :]
    mean = 0.15 + 2.2 * np.exp(-step / 1500) + 0.4 * np.exp(-step / 200)
    hard = random.random(size) < np.clip(0.9 * np.exp(-step / 1500) + 0.06, 0, 1)
    single = np.where(hard, random.gamma(2, 1.2, size), 10 ** (random.standard_normal(size) - 3))
    rare = np.where(random.random(size) < 0.003, 10 ** random.uniform(-2, 0, size), 0)
    restarts = 1 + 0.8 * np.exp(-(step % 1000) / 60) * (step >= 1000)

    def noise(deviation: float) -> Losses:
        return np.exp(deviation * random.standard_normal(size))

    return [
        Kind("A normal, 5 %", mean * (1 + 0.05 * random.standard_normal(size))),
        Kind("B log-normal, 30 %", mean * noise(0.3)),
        Kind("C heavy tail, t3, 15 %", mean * np.maximum(0.02, 1 + 0.15 * random.standard_t(3, size))),
        Kind("D batch 1, mixture", single),
        Kind("E batch 1, log-normal", mean * noise(1.5) * np.exp(-1.125)),
        Kind("F learning-rate restarts", bumps := mean * restarts * noise(0.15)),
        Kind("F, told of the rate", bumps, lr=np.broadcast_to(1 + np.cos(np.pi * (step % 1000) / 1000), size)),
        Kind("G data change x2.5, x0.4", mean * _regimes(random, size) * noise(0.15)),
        _phases(random, mean, step, size),
        Kind("I overfit to 1e-5, rare 1", (3 * np.exp(-step / 400) + 1e-5) * noise(0.5) + rare),
        Kind("J negative, to -3", 2.5 * np.exp(-step / 1500) - 3 + 0.3 * random.standard_normal(size)),
    ]


def _regimes(random: np.random.Generator, size: tuple[int, int]) -> Losses:
    """Factors that change at five random steps of each run."""
    factors = np.ones(size)
    for row in factors:
        for start in random.choice(np.arange(size[1] // 20, size[1] - 100), 5, replace=False):
            row[start:] *= random.choice([0.4, 2.5])
    return np.clip(factors, 0.2, 5)


def _phases(random: np.random.Generator, mean: Losses, step: NDArray[np.int64], size: tuple[int, int]) -> Kind:
    """Fifty easy and fifty hard batches in every five hundred."""
    composition = np.where(step % 500 < 50, 0.25, np.where(step % 500 >= 450, 2.0, 1.0))
    losses = mean * composition * np.exp(0.15 * random.standard_normal(size))
    expected = mean * composition * np.exp(0.2 * random.standard_normal(size))
    return Kind("H easy and hard phases", losses, expected, np.broadcast_to(mean, size))


def judge(guard: SpikeGuard, kind: Kind) -> Counter[Verdict]:
    """How often the guard says what; a run goes on after an alarm as it would without a backup."""
    unknown = np.broadcast_to(np.nan, kind.losses.shape)
    columns = [unknown if column is None else column for column in kind[1:]]
    counts: Counter[Verdict] = Counter()
    for rows in zip(*columns, strict=True):
        state = guard.begin()
        for values in zip(*(row.tolist() for row in rows), strict=True):
            state, verdict = guard.judge(state, *values)
            if verdict is not Verdict.GOOD:
                counts[verdict] += 1
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 runs of 10,000 steps instead of 100")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    runs, steps = 2 if options.quick else 100, 10_000
    print(f"Alarms per 1e6 healthy steps ({runs * steps:,} of each kind, seed {options.seed})")
    print(f"{'':26}{'SpikeGuard':>12}{'its drifts':>12}" + "".join(f"{name:>19}" for name in PEERS))
    worst = 0.0
    for kind in kinds(options.seed, runs, steps):
        counts = judge(SpikeGuard(), kind)
        refused, drifts = sum(counts.values()), counts[Verdict.LASTING_DRIFT]
        if kind.name[0] not in NO_FIGURE:
            worst = max(worst, refused / (runs * steps) * 1e6)
        peers = [sum(map(len, first_alarms(rule(runs), kind.losses))) for rule in PEERS.values()]
        row = [f"{count / (runs * steps) * 1e6:,.0f}" for count in (refused, drifts, *peers)]
        print(f"{kind.name:26}{row[0]:>12}{row[1]:>12}" + "".join(f"{value:>19}" for value in row[2:]), flush=True)
    print(f"Refusals of SpikeGuard, worst of A-E, H-J: {worst:.1f} (must <= {MUST:g}, aim <= {AIM:g})")


if __name__ == "__main__":
    main()
