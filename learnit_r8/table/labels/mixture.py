"""A mixture of two normal distributions, which separates learnt samples from others."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

LEAST_SEPARATION = 2.0
"""Least value of Ashman's D at which the two components are distinct."""

LEAST_SPREAD = 0.02
NUM_BINS, NUM_ROUNDS = 512, 60
CLOSE = 1e-5
"""Change of the share in an iteration below which the fit has converged."""


class Humps(NamedTuple):
    """The two components of a mixture of normal distributions.

    Attributes:
        low: Mean of the lower component.
        low_spread: Its standard deviation, > 0.
        high: Mean of the higher component.
        high_spread: Its standard deviation, > 0.
        high_share: Weight of the higher component, in [0, 1].
    """

    low: float
    low_spread: float
    high: float
    high_spread: float
    high_share: float

    @property
    def separation(self) -> float:
        """Ashman's D, the distance of the means in units of the spreads; from about 2 on, two components are visible.

        Source: Ashman, Bird & Zepf (1994), arXiv:astro-ph/9408030.
        """
        return (self.high - self.low) / math.hypot(self.low_spread, self.high_spread) * math.sqrt(2)

    @property
    def are_apart(self) -> bool:
        """Whether the components are distinct, and not one distribution cut in two."""
        return self.separation >= LEAST_SEPARATION and 0 < self.high_share < 1

    @property
    def divide(self) -> float:
        """The value above which the higher component is more likely than the lower; infinite if there is none.

        Only for components that `are_apart`.
        """
        curve, slope, height = self._log_odds()
        inside = slope * slope - 4 * curve * height
        if inside < 0:
            return -math.inf if curve > 0 else math.inf
        return self.low - 2 * height / (slope + math.sqrt(inside))

    def belonging(self, values: Doubles) -> Doubles:
        """float64[M] in [0, 1], the probability that each value is of the higher component; never falls with it."""
        if not 0 < self.high_share < 1:
            return np.full(len(values), float(self.high_share > 0))
        curve, slope, height = self._log_odds()
        distance = values - self.low
        if curve:
            # Beyond here the wider distribution would be more likely on both sides.
            turn = -slope / (2 * curve)
            distance = np.minimum(distance, turn) if curve < 0 else np.maximum(distance, turn)
        odds: Doubles = (curve * distance + slope) * distance + height
        belonging: Doubles = 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
        return belonging

    def _log_odds(self) -> tuple[float, float, float]:
        """Log odds of the higher component, as a polynomial of the distance from ``low``: highest power first."""
        narrow, wide = 1 / (2 * self.low_spread**2), 1 / (2 * self.high_spread**2)
        gap = self.high - self.low
        prior = math.log(self.high_share / (1 - self.high_share) * self.low_spread / self.high_spread)
        return narrow - wide, 2 * gap * wide, prior - gap * gap * wide


def find_humps(values: Doubles) -> Humps | None:
    """Fit two normal distributions, by expectation maximization from Otsu's threshold.

    Args:
        values: float64[M], finite; counted in 512 bins, so that the cost hardly depends on M.

    Returns:
        The components; None if all values are equal.

    Source: Dempster, Laird & Rubin (1977); Otsu (1979). Mixtures of losses to find wrong labels: Arazo et al.
    (arXiv:1904.11238), with two forward passes and beta distributions.
    """
    if not len(values) or not np.ptp(values) > 0:
        return None
    counts, edges = np.histogram(values, NUM_BINS)
    places = (edges[1:] + edges[:-1]) / 2
    powers = np.stack([np.ones(NUM_BINS), places, places**2])
    whole = powers @ counts
    humps = _fitted(powers @ (counts * (places > _otsu(places, counts))), whole)
    for _ in range(NUM_ROUNDS):
        before, humps = humps, _fitted(powers @ (counts * humps.belonging(places)), whole)
        if math.isclose(before.high_share, humps.high_share, rel_tol=CLOSE, abs_tol=CLOSE):
            break
    return humps


def _fitted(high: Doubles, whole: Doubles) -> Humps:
    """The components, from the sums of 1, x and x squared over the higher one and over all values."""
    low_mean, low_spread = _moments(whole - high)
    high_mean, high_spread = _moments(high)
    return Humps(low_mean, low_spread, high_mean, high_spread, min(1.0, float(high[0] / whole[0])))


def _moments(sums: Doubles) -> tuple[float, float]:
    total = max(float(sums[0]), 1e-12)
    mean = float(sums[1]) / total
    return mean, math.sqrt(max(0.0, float(sums[2]) / total - mean * mean)) + LEAST_SPREAD


def _otsu(places: Doubles, counts: NDArray[np.int64]) -> float:
    """Otsu's threshold, which maximizes the variance between the two sides."""
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * places)
    difference = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(places[np.argmax(below * above * difference**2)])
