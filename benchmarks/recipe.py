"""The training that benchmarks share: scikit-learn's digits, a small network in numpy, and `R8Scheduler`.

1,200 of the 1,797 digits, pixels centred; a 64-64-10 network with softmax cross entropy, SGD with
momentum 0.9 and weight decay 5e-4, cosine schedule: as in ``research/algorithms.md``, but driven by the public
interface. Small enough for hundreds of runs, and the true loss of every sample can be had at any time.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from learnit_r8 import R8Scheduler

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

NUM_TRAINING = 1200
PEAK_LR = 0.1
NUM_EPOCHS = 50


class Data(NamedTuple):
    """A split of the digits: float32[., 64] pixels and int64[.] labels, for training and for testing."""

    pixels: Floats
    labels: Indices
    test_pixels: Floats
    test_labels: Indices


def load_data(seed: int) -> Data:
    digits = load_digits()
    order = np.random.default_rng(1000 + seed).permutation(len(digits.target))
    training, test = order[:NUM_TRAINING], order[NUM_TRAINING:]
    pixels = digits.data / 16
    centred = ((pixels - pixels[training].mean(axis=0)) * 2).astype(np.float32)
    labels = digits.target.astype(np.int64)
    return Data(centred[training], labels[training], centred[test], labels[test])


class Network:
    """A 64-64-10 network with softmax cross entropy, trained by SGD with momentum and weight decay.

    Args:
        seed: Of the initial weights.
    """

    momentum, weight_decay = np.float32(0.9), np.float32(5e-4)

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        inner = rng.standard_normal((64, 64)) * np.sqrt(2 / 64)
        outer = rng.standard_normal((64, 10)) * np.sqrt(1 / 64)
        self.weights = [array.astype(np.float32) for array in (inner, np.zeros(64), outer, np.zeros(10))]
        self._velocity = [np.zeros_like(array) for array in self.weights]

    def _forward(self, pixels: Floats) -> tuple[Floats, Floats]:
        """Hidden activations and the logarithms of the class probabilities."""
        inner, inner_bias, outer, outer_bias = self.weights
        hidden = np.maximum(pixels @ inner + inner_bias, 0)
        scores = hidden @ outer + outer_bias
        scores -= scores.max(axis=1, keepdims=True)
        return hidden, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    def losses(self, pixels: Floats, labels: Indices) -> Floats:
        """float32[M], the loss of each sample with the present weights."""
        return -self._forward(pixels)[1][np.arange(len(labels)), labels]

    def accuracy(self, pixels: Floats, labels: Indices) -> float:
        """Share of samples that are classified right."""
        return float((self._forward(pixels)[1].argmax(axis=1) == labels).mean())

    def gradient(
        self, pixels: Floats, labels: Indices, importance: Floats | None = None
    ) -> tuple[Floats, list[Floats]]:
        """float32[M] losses, and the gradient of their mean for each array of weights, without weight decay.

        With ``importance``, float32[M], it is the gradient of the mean of each loss times its importance.
        """
        hidden, logs = self._forward(pixels)
        rows = np.arange(len(labels))
        error = np.exp(logs)
        error[rows, labels] -= 1
        error /= len(labels)
        if importance is not None:
            error *= importance[:, None]
        hidden_error = (error @ self.weights[2].T) * (hidden > 0)
        gradient = [pixels.T @ hidden_error, hidden_error.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        return -logs[rows, labels], gradient

    def step(self, pixels: Floats, labels: Indices, lr: float, importance: Floats | None = None) -> Floats:
        """Train on one batch; float32[B], the losses before the step."""
        losses, gradient = self.gradient(pixels, labels, importance)
        for weights, velocity, slope in zip(self.weights, self._velocity, gradient, strict=True):
            velocity *= self.momentum
            velocity += slope + self.weight_decay * weights
            weights -= np.float32(lr) * velocity
        return losses


def make_scheduler(seed: int, *, batch_size: int = 32, num_epochs: int = NUM_EPOCHS, **options: Any) -> R8Scheduler:
    """An `R8Scheduler` for the recipe; ``options`` are its keywords."""
    options = {"initial_lr": PEAK_LR} | options
    return R8Scheduler(NUM_TRAINING, batch_size=batch_size, num_epochs=num_epochs, seed=seed, **options)


def train(r8: R8Scheduler, network: Network, data: Data, *, part_size: int | None = None) -> Iterator[int]:
    """Train to the end of the budget; yields the number of epochs finished, after each.

    Args:
        r8: Says which samples and at what rate.
        network: Is trained in place.
        data: What on.
        part_size: What is reported: None for the batch mean, 1 for the loss of each sample, k for means of parts of k.
    """
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            losses = network.step(data.pixels[indices], data.labels[indices], lr)
            if part_size is None:
                r8.update_with_loss(float(losses.mean(dtype=np.float64)))
            elif part_size == 1:
                r8.update_with_loss(losses)
            else:
                r8.update_with_loss(means_of_parts(losses, part_size), part_size=part_size)
        yield epoch + 1


def means_of_parts(losses: Floats, size: int) -> NDArray[np.float64]:
    starts = np.arange(0, len(losses), size)
    return np.add.reduceat(losses.astype(np.float64), starts) / np.diff(starts, append=len(losses))
