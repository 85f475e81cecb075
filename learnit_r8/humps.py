"""Two humps in a distribution: where the samples that were learnt end and those that were not begin."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

LEAST_SEPARATION = 2.0
"""Ashman's D of two humps that can be told apart."""

LEAST_SPREAD = 0.02
NUM_BINS, NUM_ROUNDS = 512, 60


class Humps(NamedTuple):
    """Two normal distributions, and how much of the values each holds.

    Attributes:
        low: Mean of the lower one.
        low_spread: Its standard deviation, > 0.
        high: Mean of the higher one.
        high_spread: Its standard deviation, > 0.
        high_share: Share of the values that the higher one holds, in [0, 1].
    """

    low: float
    low_spread: float
    high: float
    high_spread: float
    high_share: float

    @property
    def separation(self) -> float:
        """Ashman's D, the distance of the means in units of the spreads; two humps are seen from about 2 on.

        Source: Ashman, Bird & Zepf (1994), arXiv:astro-ph/9408030.
        """
        return (self.high - self.low) / math.hypot(self.low_spread, self.high_spread) * math.sqrt(2)

    @property
    def are_apart(self) -> bool:
        """Whether these are two humps, and not one cut in two."""
        return self.separation >= LEAST_SEPARATION and 0 < self.high_share < 1

    def belonging(self, values: Doubles) -> Doubles:
        """float64[M] in [0, 1], the probability that each value is of the higher hump; never falls with the value."""
        inside = np.clip(values, self.low, self.high)
        # Beyond the means the wider of two normal distributions would win on both sides.
        own, bound = self._posterior(values), self._posterior(inside)
        return np.where(
            values < self.low, np.minimum(own, bound), np.where(values > self.high, np.maximum(own, bound), own)
        )

    def _posterior(self, values: Doubles) -> Doubles:
        high = _density(values, self.high, self.high_spread) * self.high_share
        low = _density(values, self.low, self.low_spread) * (1 - self.high_share)
        posterior: Doubles = high / np.maximum(high + low, np.finfo(np.float64).tiny)
        return posterior


def _density(values: Doubles, mean: float, spread: float) -> Doubles:
    """Of a normal distribution, but for a constant."""
    density: Doubles = np.exp(-0.5 * ((values - mean) / spread) ** 2) / spread
    return density


def find_humps(values: Doubles) -> Humps | None:
    """The two normal distributions that fit best, by expectation maximization from Otsu's threshold.

    Args:
        values: float64[M], finite; counted in 512 bins, so that the cost hardly depends on M.

    Returns:
        The humps; None where the values are all alike.

    Source: Dempster, Laird & Rubin (1977); Otsu (1979). Mixtures over losses to find wrong labels: Arazo et al.
    (arXiv:1904.11238), with two forward passes and beta distributions.
    """
    if not len(values) or not np.ptp(values) > 0:
        return None
    counts, edges = np.histogram(values, NUM_BINS)
    places = (edges[1:] + edges[:-1]) / 2
    is_high = (places > _otsu(places, counts)).astype(np.float64)
    for _ in range(NUM_ROUNDS):
        humps = _fitted(places, counts, is_high)
        is_high = humps.belonging(places)
    return humps


def _fitted(places: Doubles, counts: NDArray[np.int64], is_high: Doubles) -> Humps:
    high, low = counts * is_high, counts * (1 - is_high)
    low_mean, low_spread = _moments(places, low)
    high_mean, high_spread = _moments(places, high)
    return Humps(low_mean, low_spread, high_mean, high_spread, float(high.sum() / counts.sum()))


def _moments(places: Doubles, weights: Doubles) -> tuple[float, float]:
    total = max(float(weights.sum()), 1e-12)
    mean = float(places @ weights) / total
    return mean, math.sqrt(float((places - mean) ** 2 @ weights) / total) + LEAST_SPREAD


def _otsu(places: Doubles, counts: NDArray[np.int64]) -> float:
    """The threshold whose two sides have the farthest means, weighted by what is on each side."""
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * places)
    difference = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(places[np.argmax(below * above * difference**2)])
