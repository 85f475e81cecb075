"""The mirror of the margins: how many right labels must look wrong by a margin, from those that look right by it.

Of samples between two classes, a model that errs on m logits' difference is wrong less often the larger m is: among
right labels, the odds of a positive margin m (another class is predicted) against its mirror -m fall off with m like
exp(slope * m), whatever the network. Where margins are small, nearly all samples are right ones that are hard, so the
odds are fitted there. Wrong labels add samples far out on the positive side, which have no counterpart on the negative
one. So the fitted odds times the mirrored samples are the right labels to expect there, and the rest are wrong.

Nothing has to be known about the kind of noise: neither its rate nor which classes are confused. The measurements, and
what was tried before, are in ``benchmarks/labels.py`` and ``docs/learning.md``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

FITTED = 0.6
"""Share of the positive margins, the smallest ones, within which the odds are fitted."""

REACH = 2.0
"""How far the fit is believed, in multiples of its window; beyond, the odds stay. Those of early epochs level off."""

CAUTION = 0.5
"""Standard errors by which the odds are assumed to fall more slowly than fitted."""

LEAST_POSITIVE = 50
"""Fewer samples with positive margins are not enough to fit anything."""

LEAST_LISTED = 20
"""Shorter lists are not shown: their precision cannot be estimated."""

BIN, MOST_BINS = 25, 256
"""Least samples in a bin of positive margins, and most bins."""

FIT_BINS = 256

NUM_ROUNDS = 25


class Mirror(NamedTuple):
    """Log odds of a positive margin m against -m among right labels: offset + slope * min(m, reach).

    Attributes:
        offset: Log odds at 0.
        slope: Per unit of the margin, <= 0.
        reach: Margin from which on the odds stay.
    """

    offset: float
    slope: float
    reach: float

    @classmethod
    def of(cls, margin: Doubles, *, caution: float = CAUTION) -> Mirror | None:
        """Fit the odds to mean margins, float64[M]; None if too few are positive.

        Args:
            margin: float64[M].
            caution: Standard errors to add to the slope.
        """
        positive = margin[margin > 0]
        if len(positive) < LEAST_POSITIVE:
            return None
        window = float(np.quantile(positive, FITTED))
        size = np.abs(margin) / window
        # Counted in bins, so that the cost of the fit does not depend on M.
        counts = [np.histogram(size[side], FIT_BINS, (0.0, 1.0))[0] for side in (margin > 0, margin <= 0)]
        offset, slope, error = _logistic((np.arange(FIT_BINS) + 0.5) / FIT_BINS, counts[0], counts[0] + counts[1])
        return cls(offset, min(0.0, slope + caution * error) / window, REACH * window)

    def odds(self, size: Doubles) -> Doubles:
        """float64[M], the odds at margins of these sizes."""
        odds: Doubles = np.exp(self.offset + self.slope * np.minimum(size, self.reach))
        return odds

    def expected(self, margin: Doubles, least: Doubles) -> Doubles:
        """float64[K], right labels to expect with margins of at least ``least``, float64[K] and > 0."""
        size = np.sort(-margin[margin < 0])[::-1]
        total = np.append(0.0, np.cumsum(self.odds(size)))
        expected: Doubles = total[np.searchsorted(-size, -least, side="right")]
        return expected

    def longest(self, margin: Doubles, precision: float) -> NDArray[np.int64]:
        """int64[K], the longest list of the highest margins of which at least a share ``precision`` is wrong.

        The number of right labels in it is that which `expected` says, and one more.
        """
        order = np.flatnonzero(margin > 0)
        order = order[np.argsort(-margin[order], kind="stable")]
        count = np.arange(1, len(order) + 1)
        enough = count - self.expected(margin, margin[order]) - 1 >= precision * count
        enough[: LEAST_LISTED - 1] = False
        ends = np.flatnonzero(enough)
        return order[: int(ends[-1]) + 1] if len(ends) else order[:0]

    def score(self, margin: Doubles) -> Doubles:
        """float64[M] in [0, 1], the estimated probability that each label is wrong; never falls with the margin."""
        chosen = np.flatnonzero(margin > 0)
        chosen = chosen[np.argsort(margin[chosen], kind="stable")]
        score = np.zeros(len(margin))
        num_bins = min(MOST_BINS, len(chosen) // BIN)
        if not num_bins:
            return score
        starts = np.arange(num_bins) * len(chosen) // num_bins
        sizes = np.diff(np.append(starts, len(chosen)))
        edges = np.append(margin[chosen[starts]], np.inf)
        edges[0] = 0
        size = -margin[margin < 0]
        right = np.histogram(size, edges, weights=self.odds(size))[0]
        score[chosen] = np.repeat(np.clip(_rising(1 - right / sizes, sizes), 0, 1), sizes)
        return score


def _logistic(x: Doubles, hits: NDArray[Any], counts: NDArray[Any]) -> tuple[float, float, float]:
    """Fit the share of hits to sigmoid(offset + slope * x), by Newton: both, and the standard error of the slope."""
    design = np.stack([np.ones(len(x)), x], 1)
    found = np.zeros(2)
    for _ in range(NUM_ROUNDS):
        chance = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
        # The tiny ridge keeps the step finite where one side of the window is empty.
        curvature = design.T @ (design * (counts * chance * (1 - chance))[:, None]) + 1e-3 * np.eye(2)
        step = np.linalg.solve(curvature, design.T @ (hits - counts * chance) - 1e-3 * found)
        found = found + step
        if np.abs(step).max() < 1e-8:
            break
    error = float(np.sqrt(np.linalg.inv(curvature)[1, 1]))
    return float(found[0]), float(found[1]), error


def _rising(values: Doubles, weights: NDArray[Any]) -> Doubles:
    """The closest sequence that never falls, by pooling adjacent violators (Ayer et al., 1955)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        count = 1
        while pools and pools[-1][0] >= value:
            other, much, more = pools.pop()
            value = (value * weight + other * much) / (weight + much)
            weight, count = weight + much, count + more
        pools.append((value, weight, count))
    rising: Doubles = np.repeat([value for value, _, _ in pools], [count for _, _, count in pools])
    return rising
