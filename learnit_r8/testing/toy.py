"""A toy task: small, quick, and able to diverge like real training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import whole_number
from ..state.durable_io import open_output


class ToyTask:
    """A small classification task with a network to learn it, in numpy: three steps of it take a millisecond.

    Gaussian clouds in 20 dimensions, 10 classes; one hidden layer of 32, stochastic gradient descent with momentum
    0.9. A learning rate of 0.05 is fine; 5 and more make it diverge as real networks do.

    Args:
        num_samples: N, >= 1.
        seed: Seed of data and weights, >= 0.

    Raises:
        ValueError: an argument outside its range.

    Attributes:
        weights: The model, four float64 arrays.
        velocity: The state of the optimizer, four float64 arrays.
    """

    def __init__(self, num_samples: int = 2048, seed: int = 0) -> None:
        num_samples = whole_number("num_samples", num_samples, least=1)
        rng = np.random.default_rng(whole_number("seed", seed, least=0))
        centres = rng.normal(0, 1.0, (10, 20))
        self.labels: NDArray[np.int64] = rng.integers(0, 10, num_samples)
        self.inputs: NDArray[np.float64] = centres[self.labels] + rng.normal(0, 1.0, (num_samples, 20))
        self.weights = [rng.normal(0, 0.3, (20, 32)), np.zeros(32), rng.normal(0, 0.2, (32, 10)), np.zeros(10)]
        self.velocity = [np.zeros_like(weight) for weight in self.weights]
        self._gradients = self.velocity

    def losses(self, indices: Any) -> NDArray[np.float64]:
        """float64[B], the cross entropy of some samples; `step` follows the gradient of its mean."""
        w1, b1, w2, b2 = self.weights
        x, y, rows = self.inputs[indices], self.labels[indices], np.arange(len(indices))
        with np.errstate(all="ignore"):
            hidden = np.maximum(x @ w1 + b1, 0)
            logits = hidden @ w2 + b2
            logits -= logits.max(axis=1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            error = np.exp(log_p)
            error[rows, y] -= 1
            error /= len(indices)
            back = (error @ w2.T) * (hidden > 0)
            self._gradients = [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        losses: NDArray[np.float64] = -log_p[rows, y]
        return losses

    def step(self, lr: float, scale: float = 1.0) -> None:
        """Take a step of the optimizer with the gradient times ``scale``."""
        with np.errstate(all="ignore"):
            for weight, velocity, gradient in zip(self.weights, self.velocity, self._gradients, strict=True):
                velocity *= 0.9
                velocity += gradient * scale
                weight -= lr * velocity

    def loss(self) -> float:
        """Mean loss of all samples; leaves the gradient as it was."""
        before = self._gradients
        mean = float(self.losses(np.arange(len(self.labels))).mean())
        self._gradients = before
        return mean

    def state(self) -> dict[str, list[NDArray[np.float64]]]:
        """The model and the optimizer, for the argument ``state_callback``: the live arrays, no copies."""
        return {"weights": self.weights, "velocity": self.velocity}

    def load(self, source: Any, from_ram: bool = False) -> None:
        """Load a `state`, or the file of `save`; for the argument ``load_callback``."""
        if not from_ram:
            with np.load(source, allow_pickle=False) as file:
                source = {name: [file[f"{name}{number}"] for number in range(4)] for name in ("weights", "velocity")}
        self.weights, self.velocity = list(source["weights"]), list(source["velocity"])

    def save(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        """Write the model to a file; for the argument ``save_callback``."""
        arrays = {f"{name}{n}": array for name, many in self.state().items() for n, array in enumerate(many)}
        with open(open_output(filepath), "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
