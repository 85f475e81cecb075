"""How other tools tell a spike, each written from its description as a rule over R runs at once, for the benchmarks.

A rule is given the loss of every run at a step, float64[R], and says in which ones it alarms, bool[R].
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
Alarms = NDArray[np.bool_]
SILENT_STEPS = 32
"""One alarm of a run silences it for so long, so that rules that fire in bursts are not counted per shot."""


class Rule(Protocol):
    """A rule and what it remembers."""

    def __call__(self, losses: Losses) -> Alarms:
        """Judge the losses of the next step."""


class FourTimesMean:
    """learnit-r8's seed: more than 4 times a moving average (alpha 0.05) of the losses without alarm, from step 10."""

    def __init__(self, runs: int) -> None:
        self._mean = np.full(runs, np.nan)
        self._step = 0

    def __call__(self, losses: Losses) -> Alarms:
        alarms = ~np.isfinite(losses) | ((losses > 4 * self._mean) & (self._step > 10))
        moved = np.where(np.isnan(self._mean), losses, 0.95 * self._mean + 0.05 * losses)
        self._mean = np.where(alarms, self._mean, moved)
        self._step += 1
        return alarms


class _Window:
    """The last losses of every run."""

    def __init__(self, runs: int, length: int) -> None:
        self._values = np.full((runs, length), np.nan)
        self.counts = np.zeros(runs, int)

    def add(self, losses: Losses, where: Alarms) -> None:
        rows = np.flatnonzero(where)
        self._values[rows, self.counts[rows] % self._values.shape[1]] = losses[rows]
        self.counts[rows] += 1

    def mean_and_deviation(self) -> tuple[Losses, Losses]:
        known = ~np.isnan(self._values)
        values, count = np.where(known, self._values, 0.0), np.maximum(known.sum(1), 1)
        mean = values.sum(1) / count
        squares = (np.where(known, self._values - mean[:, None], 0.0) ** 2).sum(1)
        return mean, np.sqrt(squares / np.maximum(count - 1, 1))


class SpikeDetection:
    """Lightning's SpikeDetection: above the mean of the last 10 by twice that mean, once there are 10."""

    def __init__(self, runs: int) -> None:
        self._window = _Window(runs, 10)

    def __call__(self, losses: Losses) -> Alarms:
        mean, _ = self._window.mean_and_deviation()
        alarms = ~np.isfinite(losses) | ((losses - mean >= 2 * np.abs(mean)) & (self._window.counts >= 10))
        self._window.add(losses, ~alarms)
        return alarms


class TenTimesMax:
    """Megatron-LM's rerun state machine: more than 10 times the largest of the first 100 losses."""

    def __init__(self, runs: int) -> None:
        self._largest = np.zeros(runs)
        self._step = 0

    def __call__(self, losses: Losses) -> Alarms:
        alarms = ~np.isfinite(losses)
        if self._step < 100:
            self._largest = np.maximum(self._largest, np.where(alarms, 0.0, np.abs(losses)))
        else:
            alarms |= np.abs(losses) > 10 * self._largest
        self._step += 1
        return alarms


class SixSigma:
    """OLMo-core's SkipStepOptimizer: 6 standard deviations above the mean of the last 128, once there are 64."""

    def __init__(self, runs: int) -> None:
        self._window = _Window(runs, 128)

    def __call__(self, losses: Losses) -> Alarms:
        mean, deviation = self._window.mean_and_deviation()
        is_finite = np.isfinite(losses)
        alarms = ~is_finite | ((losses > mean + 6 * deviation) & (self._window.counts >= 64))
        self._window.add(losses, is_finite)
        return alarms


class ZScore:
    """ZClip (arXiv 2504.02507) on the loss: 2.5 deviations above a moving average (0.97), after 25 losses."""

    def __init__(self, runs: int) -> None:
        self._first: list[Losses] = []
        self._mean = self._variance = np.zeros(runs)

    def __call__(self, losses: Losses) -> Alarms:
        alarms = ~np.isfinite(losses)
        if len(self._first) < 25:
            self._first.append(np.where(alarms, np.nan, losses))
            self._mean, self._variance = np.nanmean(self._first, 0), np.nanvar(self._first, 0)
            return alarms
        limit = self._mean + 2.5 * (np.sqrt(self._variance) + 1e-6)
        clipped = np.where(alarms, self._mean, np.minimum(losses, limit))
        alarms |= losses > limit
        self._mean = 0.97 * self._mean + 0.03 * clipped
        self._variance = 0.97 * self._variance + 0.03 * (clipped - self._mean) ** 2
        return alarms


PEERS = {
    "4 x EMA (seed)": FourTimesMean,
    "Lightning": SpikeDetection,
    "Megatron 10 x max": TenTimesMax,
    "OLMo 6 sigma": SixSigma,
    "z-score 2.5": ZScore,
}


def first_alarms(rule: Rule, losses: NDArray[np.float64]) -> list[list[int]]:
    """The steps at which a rule alarms in each run.

    Args:
        rule: For R runs, unused so far.
        losses: float64[R, steps].

    Returns:
        R lists of steps; after each alarm the run is silent for `SILENT_STEPS`.
    """
    runs, steps = losses.shape
    found: list[list[int]] = [[] for _ in range(runs)]
    silent_until = np.full(runs, -math.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps):
            for run in np.flatnonzero(rule(losses[:, step]) & (step >= silent_until)):
                found[run].append(step)
                silent_until[run] = step + 1 + SILENT_STEPS
    return found
