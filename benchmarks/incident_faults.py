"""What goes wrong in a run of `incidents.py`, and when; everything follows from the case's seed and the batch's number.

Faults of batches ("nan_share", "nan_at", "bad_samples") are left out by the oracle; it meets none of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

RATE_STEPS = 5
"""So many steps in a row have a rate 50 times as high, in a cluster."""


class Faults(NamedTuple):
    """What goes wrong in a run.

    Attributes:
        nan_share: Share of batches whose losses are NaN; the model and the data are not touched.
        nan_at: Numbers of batches whose losses are NaN.
        bad_samples: Number of samples whose input is NaN.
        bad_share: How often they are, in (0, 1].
        cluster: Pairs of a batch's number and a kind: "blow" (weights x 20), "weights" (NaN in them), "shuffle"
            (inputs exchanged), "nan" (the losses), "rate" (x 50 for five steps).
        blow: A batch's number, and by what the last weights are multiplied before it.
        rate: By what the rate of the whole run is multiplied.
        reported: A batch's number, and by what its reported losses are multiplied; the model is not touched.
        moments_at: The batch before which the optimizer's first moments are multiplied by 1,000, its second ones by
            1e-9.
    """

    nan_share: float = 0.0
    nan_at: tuple[int, ...] = ()
    bad_samples: int = 0
    bad_share: float = 1.0
    cluster: tuple[tuple[int, str], ...] = ()
    blow: tuple[int, float] | None = None
    rate: float = 1.0
    reported: tuple[int, float] | None = None
    moments_at: int | None = None


class Injector:
    """The faults of one run.

    Args:
        faults: What goes wrong.
        model: What is damaged.
        seed: Of the run.
        steps: Batches of the run.
        tell: Called when something goes wrong that is no fault of a batch, with the batch's number.

    Attributes:
        bad: The bad samples.
    """

    def __init__(self, faults: Faults, model: Any, seed: int, steps: int, tell: Callable[[int], None]) -> None:
        self.faults, self._model, self._seed, self._tell = faults, model, seed, tell
        rng = np.random.default_rng([seed, 77])
        # Twice as many, as a scheduler may hand out batches that are no steps of its budget.
        self._is_nan = rng.random(2 * steps) < faults.nan_share
        self._is_nan[list(faults.nan_at)] = True
        self.bad = rng.choice(model.num_samples, faults.bad_samples, replace=False)
        self._is_bad = np.zeros(model.num_samples, bool)
        self._is_bad[self.bad] = True
        self._kinds: dict[int, list[str]] = {}
        for number, kind in faults.cluster:
            self._kinds.setdefault(number, []).append(kind)
        self._is_nan[[number for number, kind in faults.cluster if kind == "nan"]] = True
        self._spoils = hasattr(model, "spoil") and faults.bad_share == 1.0
        if self._spoils:
            model.spoil(self.bad)

    def _bad_in(self, number: int, samples: Any) -> Any:
        is_bad = self._is_bad[samples]
        if self.faults.bad_share < 1.0 and is_bad.any():
            is_bad &= np.random.default_rng([self._seed, 78, number]).random(len(samples)) < self.faults.bad_share
        return is_bad

    def is_bad_batch(self, number: int, samples: Any) -> bool:
        """Whether it must be left out by hand."""
        return bool(self._is_nan[number] or self._bad_in(number, samples).any())

    def factor(self, number: int, samples: Any) -> Any:
        """What the losses of a batch are multiplied by: float[B], NaN for bad ones; or a number."""
        if self._is_nan[number]:
            return math.nan
        if self.faults.reported is not None and number == self.faults.reported[0]:
            return self.faults.reported[1]
        if self.faults.bad_samples and not self._spoils:
            return np.where(self._bad_in(number, samples), math.nan, 1.0)
        return 1.0

    def scale(self, factor: Any) -> float:
        """What the gradient of those losses is multiplied by: that of a false report is right."""
        return 1.0 if np.isfinite(factor).all() else math.nan

    def rate(self, number: int, lr: float) -> float:
        """The rate that is really used for a batch."""
        is_high = any("rate" in self._kinds.get(n, ()) for n in range(number - RATE_STEPS + 1, number + 1))
        return lr * 50 if is_high else lr

    def damage(self, number: int) -> None:
        """Damage the model before a batch, if that is due."""
        faults, model = self.faults, self._model
        for kind in self._kinds.get(number, ()):
            if kind != "nan":
                self._tell(number)
                DAMAGE[kind](model, number)
        if faults.blow is not None and number == faults.blow[0]:
            self._tell(number)
            scale_weights(model, faults.blow[1])
        if number == faults.moments_at:
            self._tell(number)
            half = len(model.moments) // 2
            model.moments = [array * (1e3 if place < half else 1e-9) for place, array in enumerate(model.moments)]


def scale_weights(model: Any, by: float) -> None:
    """Multiply the weights of the last layer."""
    with np.errstate(all="ignore"):
        model.weights[-2] = model.weights[-2] * by


def spoil_weights(model: Any, number: int) -> None:
    """Make some weights NaN."""
    weight = model.weights[0].copy()
    weight[3, 3:9] = math.nan
    model.weights[0] = weight


def shuffle_weights(model: Any, number: int) -> None:
    """Exchange the rows of the first layer."""
    model.weights[0] = np.random.default_rng(number).permutation(model.weights[0])


DAMAGE: dict[str, Callable[[Any, int], None]] = {
    "blow": lambda model, number: scale_weights(model, 20.0),
    "weights": spoil_weights,
    "shuffle": shuffle_weights,
    "rate": lambda model, number: None,
}


def draw_cluster(number: int) -> tuple[tuple[int, str], ...]:
    """Two to eight faults within 250 steps."""
    rng = np.random.default_rng([number, 5000])
    first, count = int(rng.integers(100, 1000)), int(rng.integers(2, 9))
    kinds = rng.choice(["blow", "weights", "shuffle", "nan", "rate"], count)
    places = rng.integers(0, 250, count)
    return tuple(sorted((first + int(place), str(kind)) for place, kind in zip(places, kinds, strict=True)))
