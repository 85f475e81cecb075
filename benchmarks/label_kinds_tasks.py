"""Tasks of other kinds of labels: several a sample, tokens, masks, real numbers; their data, errors and networks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from learning_tasks import DATA
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Generator = np.random.Generator
IGNORED = -100
LABELS = 10
LENGTH = 8
HEIGHT, WIDTH = 12, 20
WORDS, TAGS = 100, 6


class Kind(NamedTuple):
    """A kind of labels.

    Attributes:
        load: Inputs and right labels, by the generator of the seed.
        spoil: Labels of which some are wrong.
        network: Makes the network.
        losses: float[B], from outputs and labels.
        kind: As `predictions_of` takes it.
        lr, batch_size, epochs: Of the training; 5-fold cross-validation has 5 / 4 of these epochs, so that it makes
            five times as many visits.
    """

    load: Callable[[Generator], tuple[Tensor, NDArray[Any]]]
    spoil: Callable[[NDArray[Any], Generator], NDArray[Any]]
    network: Callable[[], nn.Module]
    losses: Callable[[Tensor, Tensor], Tensor]
    kind: str
    lr: float
    batch_size: int
    epochs: int


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target.astype(np.int64)


def pairs(rng: Generator) -> tuple[Tensor, NDArray[np.int64]]:
    """3,000 canvases with two digits side by side; int64[N, 10], which digits there are."""
    pixels, target = digits()
    chosen = rng.integers(0, len(target), (3000, 2))
    canvas = pixels[chosen].transpose(0, 2, 1, 3).reshape(3000, -1)
    there = np.zeros((3000, LABELS), np.int64)
    np.put_along_axis(there, target[chosen], 1, 1)
    return torch.from_numpy(canvas), there


def flipped(true: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """Labels of which one in ten says the opposite."""
    return np.where(rng.random(true.shape) < 0.1, 1 - true, true)


def rows(rng: Generator) -> tuple[Tensor, NDArray[np.int64]]:
    """1,500 rows of 4 to 8 digits; int64[N, 8], the digits, and -100 behind the last."""
    pixels, target = digits()
    chosen = rng.integers(0, len(target), (1500, LENGTH))
    is_there = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, (1500, 1))
    images = pixels[chosen].reshape(1500, LENGTH, 64) * is_there[..., None]
    return torch.from_numpy(images.astype(np.float32)), np.where(is_there, target[chosen], IGNORED)


def renamed(true: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """Tokens of which one in ten is another digit."""
    other = (true + rng.integers(1, LABELS, true.shape)) % LABELS
    return np.where((rng.random(true.shape) < 0.1) & (true >= 0), other, true)


def words(rng: Generator) -> tuple[Tensor, NDArray[np.int64]]:
    """1,200 rows of ten words of a hundred, by Zipf's law; int64[N, 10], the tag of each word, always the same."""
    rank = 1 / np.arange(1, WORDS + 1)
    chosen, tags = rng.choice(WORDS, (1200, 10), p=rank / rank.sum()), rng.integers(0, TAGS, WORDS)
    return torch.from_numpy(chosen), tags[chosen]


def other_tags(true: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """Words of which one in twenty-five has another tag."""
    return np.where(rng.random(true.shape) < 0.04, (true + rng.integers(1, TAGS, true.shape)) % TAGS, true)


def topics(rng: Generator, strength: float) -> tuple[Tensor, NDArray[np.int64]]:
    """3,000 texts as counts of 120 words; int64[N, 8], which topics there are: one in five of all."""
    there, words_of = (rng.random((3000, 8)) < 0.2).astype(np.int64), rng.gamma(0.5, 1, (9, 120))
    words_of /= words_of.sum(1, keepdims=True)
    counts = rng.poisson(40 * (strength * there @ words_of[:8] + words_of[8]))
    return torch.from_numpy(np.log1p(counts).astype(np.float32)), there


def few_flipped(true: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """Labels of which 1.1 % say the opposite."""
    return np.where(rng.random(true.shape) < 0.011, 1 - true, true)


def scenes(rng: Generator) -> tuple[Tensor, NDArray[np.int64]]:
    """1,500 canvases with two digits; int64[N, 12, 20], for each pixel 0 or the digit + 1."""
    pixels, target = digits()
    canvas = np.zeros((1500, 1, HEIGHT, WIDTH), np.float32)
    mask = np.zeros((1500, HEIGHT, WIDTH), np.int64)
    for place, chosen in enumerate(rng.integers(0, len(target), (1500, 2))):
        for half, one in enumerate(chosen):
            top, left = rng.integers(0, HEIGHT - 7), 10 * half + rng.integers(0, 3)
            canvas[place, 0, top : top + 8, left : left + 8] = pixels[one]
            mask[place, top : top + 8, left : left + 8] = np.where(pixels[one] > 0.25, target[one] + 1, 0)
    return torch.from_numpy(canvas + 0.1 * rng.random(canvas.shape, np.float32)), mask


def mislabelled(true: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """Masks in which one digit in ten is missing, or is called another."""
    given = true.copy()
    for half in (slice(0, 10), slice(10, 20)):
        part = given[:, :, half]
        new = np.where(rng.random(len(true)) < 0.5, 0, rng.integers(1, LABELS + 1, len(true)))
        is_wrong = rng.random(len(true)) < 0.1
        part[:] = np.where(is_wrong[:, None, None] & (part > 0), new[:, None, None], part)
    return given


def objects(rng: Generator) -> tuple[Tensor, NDArray[np.int64]]:
    """The same canvases; int64[N, 1, 12, 20], where there is a digit."""
    canvas, mask = scenes(rng)
    return canvas, (mask > 0).astype(np.int64)[:, None]


def displaced(true: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """Masks in which 7 in 100 digits are missing, and 5 have the outline of another."""
    given, other = true.copy(), true[rng.permutation(len(true))]
    for half in (slice(0, 10), slice(10, 20)):
        chance = rng.random(len(true))[:, None, None, None]
        part = given[..., half]
        part[:] = np.where(chance < 0.07, 0, np.where(chance > 0.95, other[..., half], part))
    return given


def housing(rng: Generator) -> tuple[Tensor, NDArray[np.float32]]:
    """All districts; float32[N], the logarithm of the median value, of spread 1."""
    with open(DATA / "california_housing.csv", encoding="utf-8", newline="") as file:
        table = [row for row in csv.DictReader(file) if row["total_bedrooms"]]
    names = [name for name in table[0] if name not in ("median_house_value", "ocean_proximity")]
    columns = np.array([[float(row[name]) for name in names] for row in table])
    columns[:, 3:7] = np.log1p(columns[:, 3:7])
    kinds = sorted({row["ocean_proximity"] for row in table})
    near = np.array([[row["ocean_proximity"] == kind for kind in kinds] for row in table], float)
    value = np.log([float(row["median_house_value"]) for row in table])
    columns = np.concatenate([(columns - columns.mean(0)) / columns.std(0), near], 1)
    return torch.tensor(columns, dtype=torch.float32), ((value - value.mean()) / value.std()).astype(np.float32)


def exchanged(true: NDArray[np.float32], rng: Generator) -> NDArray[np.float32]:
    """Targets of which one in twenty is that of another sample."""
    given, chosen = true.copy(), np.flatnonzero(rng.random(len(true)) < 0.05)
    given[chosen] = true[np.roll(rng.permutation(chosen), 1)] if len(chosen) else []
    return given


class Rows(nn.Module):
    """Each digit of a row, with a little of its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.near = nn.Linear(64, 96), nn.Conv1d(96, 96, 3, padding=1)
        self.out = nn.Linear(96, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, T, 10]."""
        own = functional.relu(self.own(x))
        near = functional.relu(self.near(own.transpose(1, 2))).transpose(1, 2)
        said: Tensor = self.out(own + near)
        return said


class Tagger(nn.Module):
    """Each word, with its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.near = nn.Embedding(WORDS, 32), nn.Conv1d(32, 64, 3, padding=1)
        self.out = nn.Linear(64, TAGS)

    def forward(self, x: Tensor) -> Tensor:
        """float[B, T, 6]."""
        said: Tensor = self.out(functional.relu(self.near(self.words(x).transpose(1, 2))).transpose(1, 2))
        return said


def perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, outputs))


def masker() -> nn.Module:
    """float[B, 11, H, W]; each pixel sees 15 x 15 others."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 32, 5, padding=4, dilation=2), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(32, LABELS + 1, 1),
    )  # fmt: skip


def outliner() -> nn.Module:
    """float[B, 1, H, W]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=4, dilation=2), nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )  # fmt: skip


def of_several(outputs: Tensor, given: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, given.float(), reduction="none").mean(1)


def of_tokens(outputs: Tensor, given: Tensor) -> Tensor:
    each = functional.cross_entropy(outputs.transpose(1, 2), given, ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (given >= 0).sum(1)


def of_pixels(outputs: Tensor, given: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, given, reduction="none").mean((1, 2))


def of_outlines(outputs: Tensor, given: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, given.float(), reduction="none").mean((1, 2, 3))


def of_values(outputs: Tensor, given: Tensor) -> Tensor:
    return functional.smooth_l1_loss(outputs[:, 0], given, reduction="none")


KINDS = {
    "several labels": Kind(pairs, flipped, lambda: perceptron(128, LABELS), of_several, "multilabel", 2e-3, 32, 12),
    "tokens": Kind(rows, renamed, Rows, of_tokens, "classes", 2e-3, 32, 8),
    "words": Kind(words, other_tags, Tagger, of_tokens, "classes", 3e-3, 32, 8),
    "clear topics": Kind(
        lambda rng: topics(rng, 3.0), few_flipped, lambda: perceptron(120, 8), of_several, "multilabel", 3e-3, 32, 8
    ),
    "faint topics": Kind(
        lambda rng: topics(rng, 0.35), few_flipped, lambda: perceptron(120, 8), of_several, "multilabel", 3e-3, 32, 8
    ),
    "masks": Kind(scenes, mislabelled, masker, of_pixels, "classes", 3e-3, 16, 20),
    "masks of one class": Kind(objects, displaced, outliner, of_outlines, "multilabel", 3e-3, 16, 7),
    "regression": Kind(housing, exchanged, lambda: perceptron(13, 1), of_values, "regression", 2e-3, 64, 12),
}


def visits(kind: Kind, x: Tensor, given: NDArray[Any], seed: int, *, epochs: int, order: Any = None) -> Any:
    """Train, and yield the samples of each batch with the outputs before its step.

    Args:
        order: Batches of indices; by default random ones.

    Returns:
        The network.
    """
    torch.manual_seed(seed)
    network, labels = kind.network(), torch.from_numpy(given)
    optimizer = torch.optim.Adam(network.parameters(), lr=kind.lr)
    batches = order if order is not None else _batches(len(given), kind.batch_size, epochs, seed)
    total = epochs * -(-len(given) // kind.batch_size)
    for step, chosen in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = kind.lr * max(0.02, 1 - step / total)
        rows = torch.from_numpy(chosen)
        outputs = network(x[rows])
        losses = kind.losses(outputs, labels[rows])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        yield chosen, outputs.detach(), losses.detach()
    return network


def _batches(size: int, batch_size: int, epochs: int, seed: int) -> Any:
    rng = np.random.default_rng([17, seed])
    for _ in range(epochs):
        yield from np.array_split(rng.permutation(size), -(-size // batch_size))
