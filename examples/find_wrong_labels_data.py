"""Data for find_wrong_labels.py: digits, CIFAR-10, a folder of images, a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from learnit_r8.cli.label_data import LabelledData, read_images, read_table


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
    return _of_tensors(read_images(folder))


def table(path: Path, column: str | None) -> Data:
    """A CSV file with a header, of which one column has the labels."""
    return _of_tensors(read_table(path, column))


def _of_tensors(found: LabelledData) -> Data:
    return Data(torch.from_numpy(found.inputs), *found[1:])
