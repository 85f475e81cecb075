"""Metrics: of one batch, of an epoch, of a whole run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint.durable_io import replace
from ..events.codec import strict_json

BLOCK = 64
"""Values of a metric that are added up in one call on the device: a call for each would cost more than small steps."""


@dataclass(frozen=True)
class Metrics:
    """Named numbers of a batch or an epoch.

    Attributes:
        values: Their names and values; 0-dim arrays are fine.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def average_metrics(batch_metrics: Sequence[Metrics], weights: Sequence[float] | None = None) -> Metrics:
    """Average over batches: each name over the batches that have it; a vector counts by its mean.

    Args:
        batch_metrics: One or more.
        weights: One for each, >= 0, the sizes of the batches for instance; by default all equal.

    Returns:
        Floats.

    Raises:
        ValueError: no metrics, or not one weight for each.

    >>> average_metrics([Metrics({"loss": 1.0}), Metrics({"loss": 2.0})], weights=[3, 1])["loss"]
    1.25
    """
    chosen = [1.0] * len(batch_metrics) if weights is None else list(weights)
    if not batch_metrics or len(chosen) != len(batch_metrics):
        raise ValueError(
            f"weights must have one entry for each of the metrics (at least 1), got {len(chosen)} for "
            f"{len(batch_metrics)}."
        )
    means = RunningMeans()
    for metrics, weight in zip(batch_metrics, chosen, strict=True):
        means.add(metrics.values, weight)
    return Metrics(means.read())


def format_metrics(metrics: Metrics | Mapping[str, Any], precision: int = 4) -> str:
    """Write metrics on one line.

    Args:
        metrics: Numbers or 0-dim arrays.
        precision: Digits after the point, >= 0.

    >>> format_metrics(Metrics({"loss": 1.5, "accuracy": 0.25}))
    'loss: 1.5000, accuracy: 0.2500'
    """
    values = metrics.values if isinstance(metrics, Metrics) else metrics
    return ", ".join(f"{name}: {float(value):.{precision}f}" for name, value in values.items())


def save_metrics_history(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Write a history as strict JSON, ``{name: [value of each epoch]}``; numbers that are not finite become null."""
    lists = {name: [float(value) for value in values] for name, values in history.items()}
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, strict_json(lists, non_finite=lambda value: None, indent=2).encode())


class RunningMeans:
    """Weighted means of metrics that stay on the device until `read`."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[list[Any], list[float]]] = {}
        self._sums: dict[str, list[Any]] = {}
        self._weights: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Take the metrics of a batch; nothing is read or computed for most of them yet. None and text are left out."""
        for name, value in _numbers(metrics):
            waiting = self._waiting.get(name)
            if waiting is None:
                waiting = self._waiting[name] = ([], [])
                self._weights.setdefault(name, 0.0)
                self._sums.setdefault(name, [])
            values, weights = waiting
            values.append(value)
            weights.append(weight)
            self._weights[name] += weight
            if len(values) == BLOCK:
                self._add_up(name)

    def _add_up(self, name: str) -> None:
        values, weights = self._waiting.pop(name)
        missing = BLOCK - len(values)
        # Blocks of one length compile once.
        same_type = (*values, *values[:1] * missing)
        self._sums[name].append(_weighted_sum(same_type, np.asarray([*weights, *[0.0] * missing], np.float32)))

    def close(self) -> None:
        """Add up what is left, so that little is kept on the device."""
        for name in list(self._waiting):
            self._add_up(name)

    def read(self) -> dict[str, float]:
        """The means; waits for the device, once."""
        self.close()
        sums = jax.device_get(self._sums)
        weights = self._weights
        return {
            name: math.fsum(map(float, parts)) / weights[name] if weights[name] else math.nan
            for name, parts in sums.items()
        }


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metrics that have a mean; those of nested ones as "outer.inner"."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _numbers(value))
        elif value is not None and not isinstance(value, (str, bytes)):
            yield name, value


@jax.jit
def _weighted_sum(values: tuple[Any, ...], weights: Any) -> Any:
    means = jnp.stack([jnp.mean(jnp.asarray(value, float)) for value in values])
    # Not weights @ means: no weight times infinity would be NaN.
    return jnp.sum(jnp.where(weights > 0, means * weights, 0.0))
