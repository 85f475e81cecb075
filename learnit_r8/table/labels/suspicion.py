"""The suspicion of the losses: samples whose losses form a component of their own, worse than an untrained model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..radix import falling_order

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
    # Otsu's threshold, which maximizes the variance between the two sides.
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * places)
    difference = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    humps = _fitted(powers @ (counts * (places > float(places[np.argmax(below * above * difference**2)]))), whole)
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


LEAST_USES = 4
LEAST_HIGH = 1.03
"""Least position of the higher component: clearly worse than untrained, which is 1."""

HIGHEST = 25.0
"""Limit to which mean losses are clipped, in multiples of the untrained loss, so that one absurd sample does not hide
the others."""

TEN_CLASSES = math.log(10)
"""Untrained cross entropy of ten classes. The surprise is divided by the untrained loss, but by no less than this, as
losses may be in any unit."""

LEAST_SURPRISE = 0.3
"""Share of the expected surprise at wrong labels that the higher component must show.

A model that knows the share p of wrong labels gives each wrong one a probability of p / (classes - 1): its cross
entropy is -log(p) above that of an untrained model. Rare classes that are still being learnt have lower losses.
"""

UNLEARNED, LEAST_OF_CLASS = 0.9, 10
"""Share of the labels of a class for which another one is predicted, above which the class has not been learned; and
least labels for that."""

GROUP_SHARE = 1.5
"""Largest share of suspects in a group, relative to that in all samples: a rare class is hard, not wrong."""


class Suspicion(NamedTuple):
    """A criterion for mislabelled samples, fitted to the losses of many samples.

    Attributes:
        untrained_loss: Loss of an untrained model, > 0.
        humps: The two components of the square root of (mean loss / untrained loss).
    """

    untrained_loss: float
    humps: Humps

    @classmethod
    def of(cls, mean_loss: NDArray[np.float32], usage_count: NDArray[Any], untrained_loss: float) -> Suspicion | None:
        """Fit the criterion to samples; None if nothing is suspect.

        Samples are suspect if the mean losses fall into two components, the higher of which is clearly worse than
        untrained. With a model that has not learnt much yet, or with hard samples, there is one component with a tail.
        A rare class that is learnt late may look like wrong labels: pass the groups to `flags`.

        Args:
            mean_loss: float32[M], mean loss of each sample over its uses.
            usage_count: int[M], its uses; samples with fewer than 4 are left out.
            untrained_loss: Loss of an untrained model, in the unit of the loss.
        """
        judged = np.asarray(usage_count) >= LEAST_USES
        if not untrained_loss > 0 or not judged.any():
            return None
        humps = find_humps(_scaled(mean_loss[judged], untrained_loss))
        if humps is None or not humps.are_apart or humps.high <= LEAST_HIGH:
            return None
        return cls(untrained_loss, humps)

    @property
    def is_surprising(self) -> bool:
        """Whether the losses of the higher component are as high as those of wrong labels must be.

        Only then may its samples be left out. Rare classes that are still being learnt have lower losses.
        """
        surprise = -math.log(self.humps.high_share) / max(TEN_CLASSES, self.untrained_loss)
        return self.humps.high**2 > 1 + LEAST_SURPRISE * surprise

    def score(self, mean_loss: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64[M] in [0, 1], the probability of belonging to the higher component."""
        return self.humps.belonging(_scaled(mean_loss, self.untrained_loss))

    def flags(
        self, mean_loss: NDArray[np.float32], usage_count: NDArray[Any], group: NDArray[Any] | None = None, *,
        least: float = 1.0,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """bool[M], the suspect samples: more likely in the higher component, and worse than untrained.

        Args:
            mean_loss: float32[M].
            usage_count: int[M]; samples used fewer than 4 times are never flagged.
            group: int[M], a code for the label of each. In each group, at most 1.5 times the share of all samples is
                flagged, those of highest loss first.
            least: Limit above which a sample counts as worse than untrained, as the square root of
                mean loss / untrained loss.
        """
        bound = self.untrained_loss * max(least, self.humps.divide) ** 2
        flagged: NDArray[np.bool_] = (mean_loss > bound) & (usage_count >= LEAST_USES)
        spare(flagged, mean_loss, group)
        return flagged


def spare(flagged: NDArray[np.bool_], mean_loss: NDArray[np.float32], group: NDArray[Any] | None) -> None:
    """Clear the flags of the samples with the lowest losses in groups that have too many; without groups, of none."""
    chosen = np.flatnonzero(flagged)
    if group is None or not len(chosen):
        return
    chosen = chosen[falling_order(mean_loss[chosen])]
    flagged[chosen[are_spared(group[chosen], group)]] = False


def are_spared(group: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.bool_]:
    """bool[K], which of some suspects are not, as they have the lowest losses of a group that has too many.

    Args:
        group: int[K], the code of the group of each, < 65536; the highest loss first.
        groups: int[M], that of each of all samples, or of some of many, suspect or not.
    """
    if not len(group):
        return np.zeros(0, bool)
    sizes = np.bincount(groups, minlength=int(group.max()) + 1)
    order = np.argsort(group.astype(np.uint16), kind="stable")
    found = np.bincount(group, minlength=len(sizes))
    # None of a rare group may be among some of the samples.
    sizes = np.maximum(sizes, 1)
    count, most = 0, found
    # Each flag that is cleared lowers the share that the other groups may have.
    while count != most.sum():
        count = int(most.sum())
        most = np.minimum(found, np.ceil(GROUP_SHARE * count / len(groups) * sizes).astype(np.int64))
    rank = np.arange(len(order)) - (np.cumsum(found) - found)[group[order]]
    spared = np.empty(len(order), bool)
    spared[order] = rank >= most[group[order]]
    return spared


def unlearned(
    margin: NDArray[np.float64], given: NDArray[Any], place: NDArray[np.int64]
) -> Callable[[NDArray[Any], NDArray[np.int64]], NDArray[np.bool_]]:
    """A function that says which labels are of a class that the model has not learned: those are hard, not wrong.

    It predicts another class for more than nine in ten of them, among all or at one place.

    Args:
        margin: float64[M], of labels that are judged; more may follow.
        given: [M], their classes.
        place: int64[M], which of the labels of its sample each is.
    """
    bad = set()
    for codes in (given.astype(np.int64), _at(given, place)):
        names, code, sizes = np.unique(codes, return_inverse=True, return_counts=True)
        share = np.bincount(code, margin[: len(code)] > 0, len(names)) / sizes
        bad |= set(names[(share > UNLEARNED) & (sizes >= LEAST_OF_CLASS)].tolist())
    known = np.array(sorted(bad), np.int64)
    return lambda given, place: np.isin(given.astype(np.int64), known) | np.isin(_at(given, place), known)


def _at(given: NDArray[Any], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[M], codes of classes at places, other than those of classes."""
    return (place + 1) * 2**16 + given.astype(np.int64)


def _scaled(mean_loss: NDArray[np.float32], untrained_loss: float) -> NDArray[np.float64]:
    """Rescale losses so that learnt and mislabelled samples form components of similar width, and untrained is 1."""
    return np.sqrt(np.clip(mean_loss.astype(np.float64) / untrained_loss, 0, HIGHEST))
