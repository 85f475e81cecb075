"""Small tasks for `incidents.py` in numpy: data, networks with their optimizers, and a score on data held out.

A step takes 0.05 to 0.3 ms, so that thousands of whole trainings fit into minutes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CLIP = 10.0
"""Norm to which gradients are clipped where a task asks for that, as is usual for heavy tails."""


class Task(NamedTuple):
    """What is trained on, and how.

    Attributes:
        inputs: float64[N, D].
        targets: [N], classes or numbers.
        loss: Name in `LOSSES`.
        outputs: Outputs of the model, K.
        hidden: Width of the hidden layer; 0 for a linear model.
        optimizer: "momentum" or "adam".
        lr: A rate that trains well with batches of 32.
        is_sum: Whether the loss of a batch is the sum over its samples.
        clips: Whether gradients are clipped.
        fresh: Standard deviation of the noise that targets get anew each time, as where data are augmented.
    """

    inputs: Floats
    targets: NDArray[Any]
    loss: str
    outputs: int
    hidden: int
    optimizer: str
    lr: float
    is_sum: bool = False
    clips: bool = False
    fresh: float = 0.0

    def rate(self, batch_size: int) -> float:
        """A rate that trains well with batches of this size."""
        return self.lr * min(2.0, math.sqrt(batch_size / 32))


def _softmax(outputs: Floats, targets: NDArray[Any]) -> tuple[Floats, Floats]:
    rows = np.arange(len(targets))
    logits = outputs - outputs.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    slope = np.exp(log_p)
    slope[rows, targets] -= 1
    return -log_p[rows, targets], slope


def _squared(outputs: Floats, targets: NDArray[Any]) -> tuple[Floats, Floats]:
    error = outputs - targets.reshape(outputs.shape)
    return (error**2).mean(axis=1), 2 * error / error.shape[1]


def _hinge(outputs: Floats, targets: NDArray[Any]) -> tuple[Floats, Floats]:
    sign = 2.0 * targets - 1
    losses = np.maximum(0, 1 - sign * outputs[:, 0])
    return losses, np.where(losses > 0, -sign, 0.0)[:, None]


def _gaussian(outputs: Floats, targets: NDArray[Any]) -> tuple[Floats, Floats]:
    """Negative log-likelihood of a mean and a spread: below 0 where the model is sure and right."""
    log_sigma = np.clip(outputs[:, 1], -4, 4)
    scaled = (outputs[:, 0] - targets) * np.exp(-log_sigma)
    return log_sigma + scaled**2 / 2, np.stack([scaled * np.exp(-log_sigma), 1 - scaled**2], axis=1)


def _poisson(outputs: Floats, targets: NDArray[Any]) -> tuple[Floats, Floats]:
    """Negative log-likelihood of counts without its constant: of both signs."""
    rate = np.exp(np.clip(outputs[:, 0], -20, 20))
    return rate - targets * outputs[:, 0], (rate - targets)[:, None]


LOSSES: dict[str, Callable[[Floats, NDArray[Any]], tuple[Floats, Floats]]] = {
    "softmax": _softmax, "squared": _squared, "hinge": _hinge, "gaussian": _gaussian,
    "poisson": _poisson,
}  # fmt: skip


@functools.cache
def _digits() -> tuple[Floats, NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images / 16, labels


def _digits_task(rng: np.random.Generator, hidden: int, optimizer: str, lr: float, **more: Any) -> Task:
    images, labels = _digits()
    order = rng.permutation(len(labels))
    return Task(images[order], labels[order], "softmax", 10, hidden, optimizer, lr, **more)


def _clouds(rng: np.random.Generator) -> Task:
    """Ten overlapping Gaussian clouds."""
    labels = rng.integers(0, 10, 2000)
    inputs = rng.normal(0, 0.7, (10, 20))[labels] + rng.normal(0, 1.0, (2000, 20))
    return Task(inputs, labels, "softmax", 10, 32, "momentum", 0.02)


def _imbalanced(rng: np.random.Generator) -> Task:
    """One sample in twenty is of the second class."""
    labels = (rng.random(2000) < 0.05).astype(np.int64)
    return Task(rng.normal(0, 1.0, (2000, 10)) + 0.8 * labels[:, None], labels, "softmax", 2, 16, "momentum", 0.02)


def _line(rng: np.random.Generator, size: int = 1500) -> tuple[Floats, Floats]:
    inputs = rng.normal(0, 1.0, (size, 8))
    return inputs, inputs @ rng.normal(0, 0.5, 8)


def _curve(rng: np.random.Generator, optimizer: str, lr: float, loss: str = "squared", noise: Any = None) -> Task:
    inputs, line = _line(rng)
    curve = np.sin(2 * inputs[:, 0]) + inputs[:, 1] * inputs[:, 2] + 0.5 * line
    noise = rng.normal(0, 0.3, len(curve)) if noise is None else noise
    return Task(inputs, curve + noise, loss, 2 if loss == "gaussian" else 1, 32, optimizer, lr)


def _linear(rng: np.random.Generator, spread: float = 0.3, **more: Any) -> Task:
    inputs, line = _line(rng)
    values = {"loss": "squared", "outputs": 1, "hidden": 0, "optimizer": "momentum", "lr": 0.003, **more}
    return Task(inputs, line + rng.normal(0, spread, len(line)), **values)


def _lognormal(rng: np.random.Generator) -> Task:
    """Targets whose squares have a mean that no sample of this size finds."""
    inputs, line = _line(rng)
    targets = np.exp(0.5 * line + rng.normal(0, 1.0, len(line)))
    return Task(inputs, targets, "squared", 1, 16, "adam", 3e-3, clips=True)


def _denoise(rng: np.random.Generator) -> Task:
    """Twenty noisy targets a sample: losses that differ little, and not by sample, as those of texts; from 1.3 to 1."""
    inputs = rng.normal(0, 1.0, (2000, 8))
    targets = inputs @ rng.normal(0, 0.2, (8, 20))
    return Task(inputs, targets, "squared", 20, 0, "momentum", 0.015, fresh=1.0)


def _classes(rng: np.random.Generator, loss: str) -> Task:
    inputs, line = _line(rng)
    labels = (line + rng.normal(0, 0.5, len(line)) > 0).astype(np.int64)
    return Task(inputs, labels, loss, 1 if loss == "hinge" else 2, 16, "momentum", 0.02)


def _counts(rng: np.random.Generator) -> Task:
    inputs, line = _line(rng)
    return Task(inputs, rng.poisson(np.exp(1 + 0.7 * line)).astype(float), "poisson", 1, 16, "adam", 5e-3)


def _rare(rng: np.random.Generator) -> Task:
    """Words of a text, most of them rare: a row is zero but for five of 200 columns."""
    inputs = np.zeros((1500, 200))
    share = 1 / np.arange(1, 201)
    for row in inputs:
        row[rng.choice(200, 5, p=share / share.sum())] = 1
    labels = (inputs @ rng.normal(0, 2.0, 200) > 0).astype(np.int64)
    return Task(inputs, labels, "softmax", 2, 0, "adam", 0.01)


TASKS: dict[str, Callable[[np.random.Generator], Task]] = {
    "digits": lambda rng: _digits_task(rng, 0, "momentum", 0.02),
    "digits mlp": lambda rng: _digits_task(rng, 32, "adam", 6e-3),
    "digits sgd": lambda rng: _digits_task(rng, 32, "momentum", 0.06),
    "sum": lambda rng: _digits_task(rng, 32, "momentum", 0.02, is_sum=True),
    "clouds": _clouds,
    "imbalanced": _imbalanced,
    "regression": lambda rng: _curve(rng, "momentum", 0.003),
    "adam regression": lambda rng: _curve(rng, "adam", 3e-3),
    "student": lambda rng: _curve(rng, "adam", 3e-3, noise=rng.standard_t(3.0, 1500)),
    "gaussian": lambda rng: _curve(rng, "adam", 3e-3, "gaussian"),
    "linear": _linear,
    "unscaled": lambda rng: (line := _linear(rng))._replace(targets=1000 + 300 * line.targets),
    "lognormal": _lognormal,
    "denoise": _denoise,
    "hinge": lambda rng: _classes(rng, "hinge"),
    "logistic": lambda rng: _classes(rng, "softmax"),
    "poisson": _counts,
    "rare": _rare,
}


HELD_OUT = 397
"""Samples that are not trained on, so that 1,400 of the digits are."""


def make_task(name: str, seed: int, *, size: int | None = None) -> Task:
    """The task of this name, cut to ``size`` samples."""
    task = TASKS[name](np.random.default_rng([seed, 17]))
    return task._replace(inputs=task.inputs[:size].copy(), targets=task.targets[:size].copy())


class Network:
    """A model with at most one hidden layer, its optimizer, and moving averages of its weights that no loss sees.

    Args:
        task: All of its samples are trained on.
        seed: Of the weights.
        test: Samples held out for `score`.

    Attributes:
        weights: float64 arrays: weight, bias, and once more with a hidden layer.
        moments: Twice as many, the first and second moments of the optimizer.
        average: Moving averages of the weights.
        mark: float64[2], whether the state is damaged, and the steps since; copied with the state.
        clip: Norm to which gradients are clipped; None for no clipping.
    """

    def __init__(self, task: Task, seed: int, test: Task | None = None) -> None:
        rng = np.random.default_rng([seed, 23])
        sizes = [task.inputs.shape[1], *([task.hidden] if task.hidden else []), task.outputs]
        self.task, self._rng, self._test = task, rng, test or task
        self.num_samples, self.is_sum = len(task.targets), task.is_sum
        self.clip = CLIP if task.clips else None
        self.weights: list[Floats] = []
        for inputs, outputs in itertools.pairwise(sizes):
            self.weights += [rng.normal(0, 1.0, (inputs, outputs)) / math.sqrt(inputs), np.zeros(outputs)]
        if not task.hidden:
            self.weights[0][:] *= 0.1
        self.moments = [np.zeros_like(w) for w in (*self.weights, *self.weights)]
        self.average = [w.copy() for w in self.weights]
        self.steps = np.zeros(1)
        self.mark = np.zeros(2)
        self._gradients = [np.zeros_like(w) for w in self.weights]

    def _forward(self, indices: Any, noise: float = 0.0) -> tuple[list[Floats], Floats, Floats]:
        targets = self.task.targets[indices]
        if noise:
            targets = targets + self._rng.normal(0, noise, targets.shape)
        layers = [self.task.inputs[indices]]
        if self.task.hidden:
            layers.append(np.maximum(layers[0] @ self.weights[0] + self.weights[1], 0))
        outputs = layers[-1] @ self.weights[-2] + self.weights[-1]
        losses, slope = LOSSES[self.task.loss](outputs, targets)
        return layers, losses, slope

    def losses(self, indices: Any) -> Floats:
        """float64[B]; the gradient of their mean is kept for `step`."""
        with np.errstate(all="ignore"):
            layers, losses, slope = self._forward(indices, self.task.fresh)
            slope = slope / len(losses)
            self._gradients = [layers[-1].T @ slope, slope.sum(axis=0)]
            if self.task.hidden:
                back = (slope @ self.weights[-2].T) * (layers[1] > 0)
                self._gradients = [layers[0].T @ back, back.sum(axis=0), *self._gradients]
        return losses

    def step(self, lr: float, scale: float = 1.0) -> None:
        """One step of the optimizer on the gradient times ``scale``."""
        with np.errstate(all="ignore"):
            if self.clip is not None:
                norm = self.norm()
                scale *= min(1.0, self.clip / norm) if norm > 0 else 1.0
            self.steps += 1
            self.mark[1] += self.mark[0]
            size = len(self.weights)
            for place, weight in enumerate(self.weights):
                first, second = self.moments[place], self.moments[size + place]
                weight -= lr * self._direction(self._gradients[place] * scale, first, second)
                self.average[place] += 0.05 * (weight - self.average[place])

    def _direction(self, gradient: Floats, first: Floats, second: Floats) -> Floats:
        if self.task.optimizer == "momentum":
            first *= 0.9
            first += gradient
            return first
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        t = float(self.steps[0])
        return (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)

    def loss(self, limit: int | None = None) -> float:
        """Mean loss of all samples, or of the first ``limit``; changes nothing."""
        with np.errstate(all="ignore"):
            return float(self._forward(slice(0, limit))[1].mean())

    def norm(self) -> float:
        """The length of the gradient."""
        with np.errstate(all="ignore"):
            return math.sqrt(sum(float((gradient * gradient).sum()) for gradient in self._gradients))

    def score(self) -> float:
        """In points of 100, on data held out: accuracy, or the share of variance that is explained.

        Where there is neither, the negative mean loss times 100. 0 for a model that is not finite.
        """
        task, test = self.task, self._test
        try:
            self.task = test
            with np.errstate(all="ignore"):
                layers, losses, _ = self._forward(slice(None))
                outputs = layers[-1] @ self.weights[-2] + self.weights[-1]
        finally:
            self.task = task
        if not np.isfinite(outputs).all():
            return 0.0
        if task.loss == "softmax":
            return 100 * float((outputs.argmax(axis=1) == test.targets).mean())
        if task.loss == "hinge":
            return 100 * float(((outputs[:, 0] > 0) == (test.targets > 0)).mean())
        if task.loss == "squared":
            return 100 * max(0.0, 1 - float(losses.mean() / np.var(test.targets, axis=0).mean()))
        return -100 * float(losses.mean())

    def state(self) -> dict[str, Any]:
        """All of it, the live arrays."""
        names = ("weights", "moments", "average", "steps", "mark")
        return {name: getattr(self, name) for name in names}

    def load(self, source: Any, from_ram: bool = False) -> None:
        """Put back what `state` returned, or what `save` wrote."""
        if not from_ram:
            with np.load(source) as file:
                size = {"weights": len(self.weights), "moments": len(self.moments), "average": len(self.average)}
                lists = {name: [file[f"{name}{n}"] for n in range(count)] for name, count in size.items()}
                source = {**lists, "steps": file["steps"], "mark": file["mark"]}
        for name, value in source.items():
            setattr(self, name, value)

    def save(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        """Write it to a file."""
        arrays: dict[str, Any] = {"steps": self.steps, "mark": self.mark}
        for name in ("weights", "moments", "average"):
            arrays.update({f"{name}{n}": array for n, array in enumerate(getattr(self, name))})
        with open(filepath, "wb") as file:
            np.savez(file, **arrays)


def make_network(name: str, seed: int) -> Network:
    """A network, with the last samples of its task held out."""
    whole = make_task(name, seed)
    kept = len(whole.targets) - HELD_OUT
    test = whole._replace(inputs=whole.inputs[kept:], targets=whole.targets[kept:])
    return Network(whole._replace(inputs=whole.inputs[:kept], targets=whole.targets[:kept]), seed, test)
