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
CLOSE = 1e-5
"""Change of the share in a round after which the fit is done."""


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

    @property
    def divide(self) -> float:
        """The value from which on the higher hump is more likely than the lower; infinite where there is none.

        Of humps that are apart.
        """
        curve, slope, height = self._log_odds()
        inside = slope * slope - 4 * curve * height
        if inside < 0:
            return -math.inf if curve > 0 else math.inf
        return self.low - 2 * height / (slope + math.sqrt(inside))

    def belonging(self, values: Doubles) -> Doubles:
        """float64[M] in [0, 1], the probability that each value is of the higher hump; never falls with the value."""
        if not 0 < self.high_share < 1:
            return np.full(len(values), float(self.high_share > 0))
        curve, slope, height = self._log_odds()
        distance = values - self.low
        if curve:
            # Beyond here the wider of two normal distributions would win on both sides.
            turn = -slope / (2 * curve)
            distance = np.minimum(distance, turn) if curve < 0 else np.maximum(distance, turn)
        odds: Doubles = (curve * distance + slope) * distance + height
        belonging: Doubles = 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
        return belonging

    def _log_odds(self) -> tuple[float, float, float]:
        """Log of the odds of the higher hump, as a polynomial of the distance from ``low``: highest power first."""
        narrow, wide = 1 / (2 * self.low_spread**2), 1 / (2 * self.high_spread**2)
        gap = self.high - self.low
        prior = math.log(self.high_share / (1 - self.high_share) * self.low_spread / self.high_spread)
        return narrow - wide, 2 * gap * wide, prior - gap * gap * wide


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
    powers = np.stack([np.ones(NUM_BINS), places, places**2])
    whole = powers @ counts
    humps = _fitted(powers @ (counts * (places > _otsu(places, counts))), whole)
    for _ in range(NUM_ROUNDS):
        before, humps = humps, _fitted(powers @ (counts * humps.belonging(places)), whole)
        if math.isclose(before.high_share, humps.high_share, rel_tol=CLOSE, abs_tol=CLOSE):
            break
    return humps


def _fitted(high: Doubles, whole: Doubles) -> Humps:
    """The humps whose upper one holds these sums of 1, x and x squared, of those of all values."""
    low_mean, low_spread = _moments(whole - high)
    high_mean, high_spread = _moments(high)
    return Humps(low_mean, low_spread, high_mean, high_spread, min(1.0, float(high[0] / whole[0])))


def _moments(sums: Doubles) -> tuple[float, float]:
    total = max(float(sums[0]), 1e-12)
    mean = float(sums[1]) / total
    return mean, math.sqrt(max(0.0, float(sums[2]) / total - mean * mean)) + LEAST_SPREAD


def _otsu(places: Doubles, counts: NDArray[np.int64]) -> float:
    """The threshold whose two sides have the farthest means, weighted by what is on each side."""
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * places)
    difference = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(places[np.argmax(below * above * difference**2)])
