"""The tasks of benchmarks/learning.py: data, a model that learns from batches, and how good it is on held-out data."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from recipe import Network, load_data

# isort: split
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

DATA = Path(os.environ.get("LEARNIT_R8_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


class Score(NamedTuple):
    """How good a model is on held-out data: accuracy in per cent or mean loss; the same on the rare classes alone."""

    result: float
    rarest: float | None = None


class Learner(Protocol):
    """A model and the data it learns from.

    Attributes:
        num_samples: N.
        labels: int64[N] as the training sees them; None where the task is no classification.
        is_wrong: bool[N], which of them were changed.
    """

    num_samples: int
    labels: Indices | None
    is_wrong: NDArray[np.bool_]

    def step(self, indices: Indices, lr: float, weights: Floats | None) -> Floats:
        """Train on one batch; float32[B], the losses before the step."""

    def score(self, *, briefly: bool) -> Score:
        """How good it is by now; ``briefly`` on a part of the held-out data where that saves time."""


class Labels(NamedTuple):
    """What is done to the labels of a classification task.

    Attributes:
        wrong: Share changed to another class, uniformly at random.
        is_rare: Whether classes 0 to 4 keep only one sample in ten.
    """

    wrong: float = 0.0
    is_rare: bool = False


CLEAN = Labels()


class Task(NamedTuple):
    """A task and its usual training.

    Attributes:
        make: Makes the learner of a seed.
        epochs: The usual number, 100 % of the budget.
        batch_size: B.
        is_loss: Whether less is better.
        settings: By name.
        seeds: Number of seeds in the whole run.
        grid: Learning rates to choose from.
        file: What it needs from the data folder, "" for nothing.
    """

    make: Callable[[int, Labels], Learner]
    epochs: int
    batch_size: int
    is_loss: bool
    settings: dict[str, Labels]
    seeds: int
    grid: tuple[float, ...]
    file: str = ""

    @property
    def is_here(self) -> bool:
        """Whether the data are there."""
        return not self.file or (DATA / self.file).is_file()


def spoilt(labels: Indices, how: Labels, seed: int, classes: int = 10) -> tuple[Indices, Indices, NDArray[np.bool_]]:
    """Which samples stay, their labels, and which of these are wrong: int64[M], int64[M], bool[M]."""
    rng = np.random.default_rng([9, seed])
    kept = np.flatnonzero((labels >= classes // 2) | (rng.random(len(labels)) < 0.1)) if how.is_rare else None
    kept = np.arange(len(labels)) if kept is None else kept
    new = labels[kept]
    chosen = rng.permutation(len(new))[: round(how.wrong * len(new))]
    new[chosen] = (new[chosen] + rng.integers(1, classes, len(chosen))) % classes
    is_wrong = np.zeros(len(new), bool)
    is_wrong[chosen] = True
    return kept, new, is_wrong


def area(scores: NDArray[np.float32], is_wrong: NDArray[np.bool_]) -> float:
    """The probability that a wrong label has a higher score than a right one."""
    rank = np.argsort(np.argsort(scores))
    count = is_wrong.sum()
    return float((rank[is_wrong].mean() - (count - 1) / 2) / (len(rank) - count)) if count else float("nan")


class Digits:
    """The network of benchmarks/recipe.py on 1,200 of scikit-learn's digits; the other 597 are held out."""

    def __init__(self, seed: int, how: Labels) -> None:
        self._data = load_data(seed)
        kept, self.labels, self.is_wrong = spoilt(self._data.labels, how, seed)
        self._pixels = self._data.pixels[kept]
        self.num_samples = len(kept)
        self._network = Network(seed)
        self._is_rare = how.is_rare

    def step(self, indices: Indices, lr: float, weights: Floats | None) -> Floats:
        return self._network.step(self._pixels[indices], self.labels[indices], lr, weights)

    def score(self, *, briefly: bool) -> Score:
        pixels, labels = self._data.test_pixels, self._data.test_labels
        rarest = labels < 5
        of_rarest = self._network.accuracy(pixels[rarest], labels[rarest]) if self._is_rare and not briefly else None
        return Score(100 * self._network.accuracy(pixels, labels), None if of_rarest is None else 100 * of_rarest)


HOUSING_COLUMNS = (
    "longitude",
    "latitude",
    "housing_median_age",
    "total_rooms",
    "total_bedrooms",
    "population",
    "households",
    "median_income",
    "median_house_value",
)


@functools.lru_cache
def housing() -> Floats:
    """float32[20433, 9], the districts of California without gaps; the last column in 100,000 dollars."""
    path = DATA / "california_housing.csv"
    with path.open() as file:
        names = file.readline().strip().split(",")
        columns = [names.index(name) for name in HOUSING_COLUMNS]
        rows = np.genfromtxt(file, delimiter=",", usecols=columns, dtype=np.float64)
    rows = rows[~np.isnan(rows).any(axis=1)]
    rows[:, -1] /= 1e5
    return rows.astype(np.float32)


def make_housing(seed: int, how: Labels) -> Learner:
    """A perceptron with two hidden layers for the price of houses, a fifth of the districts held out."""
    from learning_deep import Housing

    return Housing(seed, housing())


def make_cifar(seed: int, how: Labels) -> Learner:
    """A small convolutional network on 10,000 images of CIFAR-10."""
    from learning_deep import Cifar

    return Cifar(seed, how)


def make_shakespeare(seed: int, how: Labels) -> Learner:
    """A small transformer on windows of tiny Shakespeare."""
    from learning_deep import Shakespeare

    return Shakespeare(seed)


TASKS = {
    "digits": Task(
        Digits,
        epochs=20,
        batch_size=32,
        is_loss=False,
        settings={
            "clean": CLEAN,
            "5 % wrong": Labels(0.05),
            "10 % wrong": Labels(0.1),
            "20 % wrong": Labels(0.2),
            "40 % wrong": Labels(0.4),
            "20 % wrong, own rates": Labels(0.2),
            "40 % wrong, own rates": Labels(0.4),
            "5 rare classes": Labels(is_rare=True),
        },
        seeds=20,
        grid=(0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4),
    ),
    "housing": Task(
        make_housing,
        epochs=20,
        batch_size=128,
        is_loss=True,
        settings={"clean": CLEAN},
        seeds=8,
        grid=(0.01, 0.03, 0.1, 0.3),
        file="california_housing.csv",
    ),
    "shakespeare": Task(
        make_shakespeare,
        epochs=8,
        batch_size=32,
        is_loss=True,
        settings={"clean": CLEAN},
        seeds=3,
        grid=(0.01, 0.03, 0.1),
        file="tinyshakespeare.txt",
    ),
    "CIFAR-10": Task(
        make_cifar,
        epochs=12,
        batch_size=64,
        is_loss=False,
        settings={"clean": CLEAN, "10 % wrong": Labels(0.1), "20 % wrong": Labels(0.2)},
        seeds=3,
        grid=(0.02, 0.05, 0.1),
        file="cifar10_jpeg.npz",
    ),
}
"""Cheapest first."""
