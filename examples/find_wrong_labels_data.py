"""Data for find_wrong_labels.py: digits, CIFAR-10, a folder of images, a table."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

SIDE = 32
"""Pixels a side of the images in a folder, for the network."""
MOST_VALUES = 50
"""Most different texts in a column of a table that is used."""


class Data(NamedTuple):
    """A data set with labels.

    Attributes:
        inputs: float32[N, ...].
        labels: int64[N], classes.
        classes: The names of the classes.
        names: N names of samples; None for their numbers.
        picture: Returns a picture of a sample for the page; None without.
        describe: Returns a text about it; None without.
        test: Inputs and labels that are not trained on; None without.
    """

    inputs: torch.Tensor
    labels: np.ndarray
    classes: list[str]
    names: list[str] | None = None
    picture: Callable[[int], Any] | None = None
    describe: Callable[[int], str] | None = None
    test: tuple[torch.Tensor, np.ndarray] | None = None


def digits() -> Data:
    """1,200 of scikit-learn's digits to train on, the other 597 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    inputs = torch.tensor(data.images[order, None] / 16, dtype=torch.float32)
    labels = data.target[order].astype(np.int64)
    train, test = slice(1200), slice(1200, None)
    return Data(
        inputs[train],
        labels[train],
        [str(digit) for digit in range(10)],
        picture=lambda index: inputs[index],
        test=(inputs[test], labels[test]),
    )


def cifar10(num_samples: int) -> Data:
    """The first images of CIFAR-10, and 2,000 to test, from the folder that LEARNIT_R8_DATA names."""
    from cifar10_parts import DATA, decoded

    path = DATA / "cifar10_jpeg.npz"
    if not path.is_file():
        raise SystemExit(f"LEARNIT_R8_DATA must name a folder with cifar10_jpeg.npz, got none in {DATA}.")
    with np.load(path) as file:
        images, labels = decoded(file, "train", num_samples)
        test_images, test_labels = decoded(file, "test", 2000)
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return Data(
        images.float() / 127.5 - 1,
        labels.numpy(),
        classes,
        picture=lambda index: images[index],
        test=(test_images.float() / 127.5 - 1, test_labels.numpy()),
    )


def images(folder: Path) -> Data:
    """The images in a folder, in one folder for each label, as torchvision's ImageFolder takes them."""
    from PIL import Image

    classes = sorted(each.name for each in folder.iterdir() if each.is_dir())
    paths = [path for name in classes for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in ENDINGS]
    if len(classes) < 2 or not paths:
        raise SystemExit(f"--images must name a folder with a folder of images for each label, got {folder}.")

    def picture(index: int, side: int = 64) -> np.ndarray:
        with Image.open(paths[index]) as image:
            return np.asarray(image.convert("RGB").resize((side, side)))

    pixels = np.stack([picture(index, SIDE) for index in range(len(paths))])
    names = [path.relative_to(folder).as_posix() for path in paths]
    labels = np.array([classes.index(name.partition("/")[0]) for name in names])
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Data(inputs, labels, classes, names, picture)


ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def table(path: Path, column: str | None) -> Data:
    """A CSV file with a header: numbers are standardised, texts with up to 50 different values become one column each.

    Missing numbers take the mean of their column.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row]
    if not rows or column not in rows[0]:
        raise SystemExit(
            f"--label must be a column of {path} ({', '.join(rows[0]) if rows else 'empty'}), got {column}."
        )
    classes = sorted({row[column] for row in rows})
    labels = np.array([classes.index(row[column]) for row in rows])
    parts = [_numbers([row[name] for row in rows]) for name in rows[0] if name != column]
    inputs = np.concatenate([part for part in parts if part is not None], axis=1)

    def describe(index: int) -> str:
        return ", ".join(f"{name} {value}" for name, value in rows[index].items() if name != column)

    return Data(torch.tensor(inputs, dtype=torch.float32), labels, classes, describe=describe)


def _numbers(texts: list[str]) -> np.ndarray | None:
    """float64[N, K], a column as numbers of mean 0 and spread 1, or 0 and 1; None for texts of too many kinds."""
    try:
        values = np.array([float(text) if text.strip() else np.nan for text in texts])
    except ValueError:
        kinds = sorted(set(texts))
        return (
            np.array([[text == kind for kind in kinds] for text in texts], float) if len(kinds) <= MOST_VALUES else None
        )
    values = np.where(np.isfinite(values), values, np.nanmean(values))
    return ((values - values.mean()) / max(values.std(), 1e-9))[:, None]
