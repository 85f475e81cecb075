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


PEERS = {"4 x EMA (seed)": FourTimesMean, "z-score 2.5": ZScore}


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
