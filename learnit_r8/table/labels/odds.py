"""The odds of a positive margin against its mirror image, as a sum of those of right and of wrong labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

STARTS = (0.01, 0.05, 0.2)
"""Shares from which the likelihood is climbed: it may have more than one maximum."""

LEAST_RISE = 1.0
LOWEST, HIGHEST = np.array([-12.0, 0.0, LEAST_RISE, 0.0]), np.array([3.0, 40.0, 20.0, 20.0])
"""Limits of the log odds of the share, of the slope, of the rise and of the bend."""

STRAIGHT, BENT = 3, 4
"""Numbers that are fitted: without and with the bend."""

BEND_FROM = np.array([0.0, 0.0, 0.0, 0.5])

NUM_ROUNDS = 60
CLOSE = 1e-4
MOST_DAMPED = 1e8


class OddsFit(NamedTuple):
    """The fitted odds; margins in multiples of the reach.

    Attributes:
        share: As in `Mirror`, without a bend.
        slope: As in `Mirror`: the steeper of those that fit best with and without a bend.
        error: Standard error of the slope without a bend.
        gain: Log likelihood without a bend, less that of odds that only fall.
    """

    share: float
    slope: float
    error: float
    gain: float


def fit_odds(positive: NDArray[Any], negative: NDArray[Any], *, least_rise: float = LEAST_RISE) -> OddsFit:
    """Fit the odds to counts in equal bins of [0, 1], by Newton with damping from several starts.

    Args:
        positive: Counts of the sizes of positive margins.
        negative: Those of the others.
        least_rise: Least rise with a bend.
    """
    size, total = (np.arange(len(positive)) + 0.5) / len(positive), positive + negative
    slope = _falling(size, positive, total)
    alone = _likelihood(np.exp(-slope * size), positive, total)
    starts = [np.array([math.log(share / (1 - share)), 1.3 * max(slope, 0.5), 2.0, 0.0]) for share in STARTS]
    found, likelihood = _highest(starts, size, positive, total, STRAIGHT)
    curvature = _slopes(found, size, positive, total, STRAIGHT)[1]
    error = math.sqrt(np.linalg.inv(curvature + 1e-6 * np.eye(STRAIGHT))[1, 1])
    # Far out no right labels are left to look right, so the odds of wrong ones rise ever faster. A straight rise that
    # follows them is too steep and begins too low, which makes the odds of right labels fall too slowly.
    bent = [start + BEND_FROM for start in (*starts, found)]
    steeper = max(found[1], _highest(bent, size, positive, total, BENT, least_rise)[0][1])
    return OddsFit(1 / (1 + math.exp(-found[0])), float(steeper), error, likelihood - alone)


def _highest(
    starts: list[Doubles],
    size: Doubles,
    positive: NDArray[Any],
    total: NDArray[Any],
    free: int,
    least_rise: float = LEAST_RISE,
) -> tuple[Doubles, float]:
    """The numbers of highest likelihood that are reached from some starts, and its logarithm."""
    lowest = np.where(LOWEST == LEAST_RISE, least_rise, LOWEST)
    return max((_climbed(start, size, positive, total, free, lowest) for start in starts), key=lambda each: each[1])


def _falling(size: Doubles, positive: NDArray[Any], total: NDArray[Any]) -> float:
    """Return the slope, on the assumption that the odds only fall."""
    slope = 0.0
    for _ in range(NUM_ROUNDS):
        chance = 1 / (1 + np.exp(np.clip(slope * size, -30, 30)))
        step = float((total * chance - positive) @ size / (1e-3 + (total * chance * (1 - chance)) @ size**2))
        slope += step
        if abs(step) < CLOSE:
            break
    return slope


def _climbed(
    start: Doubles,
    size: Doubles,
    positive: NDArray[Any],
    total: NDArray[Any],
    free: int,
    lowest: Doubles = LOWEST,
) -> tuple[Doubles, float]:
    """The log odds of the share, slope, rise and bend of highest likelihood, and its logarithm; the first are free."""
    found, best = start, _likelihood(np.add(*_terms(start, size)), positive, total)
    damping = 1e-3
    for _ in range(NUM_ROUNDS):
        gradient, curvature = _slopes(found, size, positive, total, free)
        step = np.zeros(BENT)
        step[:free] = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature) + 1e-9), gradient)
        tried = np.clip(found + np.clip(step, -1, 1), lowest, HIGHEST)
        likelihood = _likelihood(np.add(*_terms(tried, size)), positive, total)
        if likelihood < best:
            damping *= 4
            if damping > MOST_DAMPED:
                break
            continue
        gain, found, best, damping = likelihood - best, tried, likelihood, damping / 3
        if gain < CLOSE:
            break
    return found, best


def _terms(numbers: Doubles, size: Doubles) -> tuple[Doubles, Doubles]:
    """The odds of right and of wrong labels, each times its share."""
    share = 1 / (1 + math.exp(-numbers[0]))
    return (1 - share) * np.exp(-numbers[1] * size), share * np.exp((numbers[2] + numbers[3] * size) * size)


def _likelihood(odds: Doubles, positive: NDArray[Any], total: NDArray[Any]) -> float:
    return float(positive @ np.log(odds) - total @ np.log1p(odds))


def _slopes(
    numbers: Doubles, size: Doubles, positive: NDArray[Any], total: NDArray[Any], free: int
) -> tuple[Doubles, Doubles]:
    """Gradient and expected curvature of the log likelihood, in the first numbers."""
    right, wrong = _terms(numbers, size)
    odds, share = right + wrong, 1 / (1 + math.exp(-numbers[0]))
    by_number = np.stack([(1 - share) * wrong - share * right, -size * right, size * wrong, size**2 * wrong])[:free]
    gradient = by_number @ (positive / odds - total / (1 + odds))
    curvature = by_number * (total / (odds * (1 + odds) ** 2)) @ by_number.T
    return gradient, curvature
