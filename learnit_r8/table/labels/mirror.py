"""The mirror of the margins: how many right labels must look wrong by a margin, from those that look right by it.

Of samples between two classes, a model that errs on m logits' difference is wrong less often the larger m is: among
right labels, the odds of a positive margin m (another class is predicted) against its mirror -m fall off with m like
exp(-slope * m), whatever the network. Among wrong labels they rise, about like exp(rise * m). At m = 0 both are 1, as
nothing tells -0 from 0. Only with two classes need they not rise: there a wrong label is a right one of the other
class, so that wrong ones are as many times fewer at every margin, and ever fewer once they are learnt in part, which
shortens their margins. The odds of all samples are

    (1 - share) * exp(-slope * m) + share * exp(rise * m + bend * m * m)

where share is that of wrong labels among the samples between two classes. These numbers are fitted to the odds seen,
once with a bend of zero and once with any; the steeper slope counts, less what it may be too steep by: down to the
lowest with which the other numbers explain the odds nearly as well. Then exp(-slope * m) times the mirrored samples are
the most right labels to expect at a margin; the rest are wrong. Odds that only fall need no wrong labels, as where some
right labels are harder than the others: unless a second term that rises explains the counts better than one that falls,
or much better than none, there is no list.

Nothing has to be known about the kind of noise: neither its rate nor which classes are confused. The measurements, and
what was tried before, are in ``benchmarks/labels.py`` and ``docs/learning.md``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

STARTS = (0.01, 0.05, 0.2)
"""Shares from which the likelihood is climbed: it may have more than one maximum."""

LEAST_RISE, LEAST_RISE_OF_TWO, MOST_RISE, MOST_FALL = 1.0, -2.0, 20.0, -40.0
"""Least rise, and that with a bend where there are two classes; limits of rising and falling. Measured on topics of
texts, see benchmarks/label_kinds.py: a least rise of 0 left lists for .7 at half of what the order could give, with
nothing right in them."""

MOST_SHARE = 0.25
"""Most wrong labels among the samples between two classes, as a share. In benchmarks/verdicts.py (20 % wrong) there are
.10 to .17. Without this limit two of 30 fits found .55 and .57, with slopes of 9 and 32 where right labels had 1.6 and
2.0, as if only margins near zero were theirs: lists for .7 held .48 and .39."""

LOWEST = np.array([-12.0, 0.0, LEAST_RISE, 0.0])
HIGHEST = np.array([math.log(MOST_SHARE / (1 - MOST_SHARE)), 40.0, MOST_RISE, 20.0])
"""Limits of the log odds of the share, of the slope, of the rise and of the bend."""

ALONE, STRAIGHT, BENT, PINNED = (1,), (0, 1, 2), (0, 1, 2, 3), (0, 2, 3)
"""Which numbers are fitted: the slope, those without the bend, with it, and all but the slope."""

BEND_FROM, FALL_FROM = np.array([0.0, 0.0, 0.0, 0.5]), np.array([1.0, 1.0, 0.0, 0.0])

NUM_ROUNDS, NUM_HALVES = 60, 7
CONVERGED = 1e-4
MOST_DAMPED = 1e8


MISFIT = 0.1
"""Error of the slope, as a share of it, that no number of samples takes away, as the odds do not fall quite evenly. Of
20,000 simulated margins lists for .7 held .67 without it, and .70 with it."""


class OddsFit(NamedTuple):
    """The fitted odds; margins in multiples of the reach.

    Attributes:
        share: As in `Mirror`, without a bend.
        slope: As in `Mirror`: the steeper of those that fit best with and without a bend.
        error: By how much the slope may be too steep; 0 without caution.
        gain: Log likelihood without a bend, less that of odds that fall evenly.
        rising: The same, less that of two kinds of odds that both fall.
    """

    share: float
    slope: float
    error: float
    gain: float
    rising: float


class OddsCounts(NamedTuple):
    """Counts of margins, whose odds are fitted.

    Attributes:
        size: float64[K], the middle of each bin of sizes.
        positive: int[K], positive margins in it.
        total: int[K], all margins in it.
    """

    size: Doubles
    positive: NDArray[Any]
    total: NDArray[Any]

    def likelihood(self, odds: Doubles) -> float:
        """The logarithm of the likelihood of odds, float64[K]."""
        return float(self.positive @ np.log(odds) - self.total @ np.log1p(odds))

    def terms(self, numbers: Doubles) -> tuple[Doubles, Doubles]:
        """The odds of right and of wrong labels, each times its share."""
        share, size = 1 / (1 + math.exp(-numbers[0])), self.size
        return (1 - share) * np.exp(-numbers[1] * size), share * np.exp((numbers[2] + numbers[3] * size) * size)

    def slopes(self, numbers: Doubles, free: list[int]) -> tuple[Doubles, Doubles]:
        """Gradient and expected curvature of the log likelihood, in the numbers that are free."""
        right, wrong = self.terms(numbers)
        odds, share, size = right + wrong, 1 / (1 + math.exp(-numbers[0])), self.size
        by_number = np.stack([(1 - share) * wrong - share * right, -size * right, size * wrong, size**2 * wrong])[free]
        gradient = by_number @ (self.positive / odds - self.total / (1 + odds))
        return gradient, by_number * (self.total / (odds * (1 + odds) ** 2)) @ by_number.T

    def highest(
        self, starts: list[Doubles], free: tuple[int, ...], least_rise: float = LEAST_RISE, most_rise: float = MOST_RISE
    ) -> tuple[Doubles, float]:
        """The numbers of highest likelihood that are reached from some starts, and its logarithm."""
        return max((self.climb(start, free, least_rise, most_rise) for start in starts), key=lambda each: each[1])

    def climb(
        self, start: Doubles, free: tuple[int, ...], least_rise: float = LEAST_RISE, most_rise: float = MOST_RISE
    ) -> tuple[Doubles, float]:
        """The log odds of the share, slope, rise and bend of highest likelihood, and its logarithm."""
        lowest, highest = LOWEST.copy(), HIGHEST.copy()
        lowest[2], highest[2] = least_rise, most_rise
        if free == ALONE:
            # Of a network that has learnt nothing, the odds of right labels rise.
            lowest[1] = -highest[1]
        found, best, damping = start, self.likelihood(np.add(*self.terms(start))), 1e-3
        for _ in range(NUM_ROUNDS):
            gradient, curvature = self.slopes(found, list(free))
            step = np.zeros(len(start))
            step[list(free)] = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature) + 1e-9), gradient)
            tried = np.clip(found + np.clip(step, -1, 1), lowest, highest)
            likelihood = self.likelihood(np.add(*self.terms(tried)))
            if likelihood < best:
                damping *= 4
                if damping > MOST_DAMPED:
                    break
                continue
            gain, found, best, damping = likelihood - best, tried, likelihood, damping / 3
            if gain < CONVERGED:
                break
        return found, best


def fit_odds(
    positive: NDArray[Any], negative: NDArray[Any], *, least_rise: float = LEAST_RISE, caution: float = 1.0
) -> OddsFit:
    """Fit the odds to counts in equal bins of [0, 1], by Newton with damping from several starts.

    Args:
        positive: Counts of the sizes of positive margins.
        negative: Those of the others.
        least_rise: Least rise with a bend.
        caution: Standard errors in the error of the slope. Where there are few margins, the likelihood is no parabola:
            it falls fast on the side of slopes that are too flat. So they are counted by its logarithm, which falls by
            half of their square.
    """
    size, total = (np.arange(len(positive)) + 0.5) / len(positive), positive + negative
    counts = OddsCounts(size, positive, total)
    alone, evenly = counts.climb(np.array([LOWEST[0], 1.0, 0.0, 0.0]), ALONE, MOST_FALL, 0.0)
    starts = [np.array([math.log(share / (1 - share)), 1.3 * max(alone[1], 0.5), 2.0, 0.0]) for share in STARTS]
    straight, likelihood = counts.highest(starts, STRAIGHT)
    falling = counts.highest([start * FALL_FROM for start in starts], STRAIGHT, MOST_FALL, 0.0)[1]
    # Far out no right labels are left to look right, so the odds of wrong ones rise ever faster. A straight rise that
    # follows them is too steep and begins too low, which makes the odds of right labels fall too slowly.
    bent = [start + BEND_FROM for start in (*starts, straight)]
    found, best = counts.highest(bent, BENT, least_rise)
    steeper = float(max(straight[1], found[1]))
    gain, rising = likelihood - evenly, likelihood - max(evenly, falling)
    fit = OddsFit(1 / (1 + math.exp(-straight[0])), steeper, 0.0, gain, rising)
    if not caution:
        return fit
    low, high = 0.0, float(found[1])
    for _ in range(NUM_HALVES):
        middle = (low + high) / 2
        pinned = np.where(np.arange(len(found)) == 1, middle, found)
        tried, reached = counts.climb(pinned, PINNED, least_rise)
        if reached < best - caution**2 / 2:
            low = middle
        else:
            high, found = middle, tried
    return fit._replace(error=math.hypot(steeper - high, MISFIT * steeper))


FITTED = 0.97
"""Share of the positive margins, the smallest ones, within which the odds are fitted; beyond, they stay as they are."""

CAUTION, CAUTION_IF_STEADY = 1.75, 1.5
"""Errors of the slope by which the odds of right labels are assumed to fall more slowly than fitted: where they may not
fall evenly, and else. Measured in benchmarks/verdicts.py, seeds 601 to 603: after weights lists for .7 of the wide
teacher held .86 and .72 wrong ones (random, confusable); with 1.5 .83 and .67."""

LEAST_GAIN, LEAST_GAIN_OF_OTHERS, LEAST_RISING, LEAST_GAIN_EACH = 15.0, 9.0, 6.0, 0.001
"""How much the second term must add to the log likelihood to be believed: over odds that fall evenly, with one label a
sample and else (two classes, several labels), or with one label over two kinds that both fall; and for each positive
margin. Of 268 trainings on clean labels in benchmarks/verdicts.py the two were 11.1 and 4.0 at most; with 9 five had
lists. Of other kinds no clean training of benchmarks/label_kinds.py had one with 9."""

SURE_GAIN, SURE_RISING = 20.0, 13.0
"""The first and the third of these where weights are to follow from it: that is asked in each pass, so that of 103
trainings of the narrow network on clean labels 13 had weights once, at 15.8 and 12.0 at most."""

LEAST_POSITIVE = 50
"""Fewer samples with positive margins are not enough to fit anything."""

LEAST_LISTED, LEAST_RIGHT = 20, 5
"""Shorter lists are not shown, nor those in which fewer right labels than this may be, as in 49 samples at .9: the
precision of a list cannot be told from so few."""

BIN, MOST_BINS = 25, 256
"""Least samples in a bin of positive margins, and most bins."""

FIT_BINS, EFFECT_BINS = 256, 32
CLOSE = 1e-9

CLUMPED = 2.0
"""Standard errors by which there may be more right labels in a list, as the labels of a sample err together: one digit
that is misread is a dozen wrong pixels. Measured in benchmarks/label_kinds.py."""


class Mirror(NamedTuple):
    """Odds of a positive margin m against -m among right labels: exp(-slope * m) up to the reach.

    Attributes:
        slope: Per unit of the margin, >= 0.
        reach: Margin up to which the odds were fitted.
        beyond: Odds at larger margins: no more than at the reach, and no more right labels than there are samples.
        clump: How many labels of a sample err together, less one.
    """

    slope: float
    reach: float
    beyond: float
    clump: float = 0.0

    @classmethod
    def of(
        cls,
        margin: Doubles,
        *,
        caution: float | None = None,
        is_steady: bool = False,
        alike: int = 1,
        sample: NDArray[np.int64] | None = None,
        is_binary: bool = False,
        least: int = LEAST_POSITIVE,
        is_sure: bool = False,
    ) -> Mirror | None:
        """Fit the odds to mean margins, float64[M]; None if too few are positive, or no labels need be wrong.

        Args:
            margin: float64[M]; NaN says nothing.
            caution: Standard errors to take off the slope; by default `CAUTION` or `CAUTION_IF_STEADY`.
            is_steady: Whether the odds of right labels fall evenly, as not in a network that has only begun to learn.
            alike: Margins that may be alike, so that they count as one.
            sample: int64[M], ascending: the sample of each, if it may have several; they may err together.
            is_binary: Whether the labels have two classes.
            least: Fewest positive margins to fit anything to.
            is_sure: Whether to be surer that labels are wrong, as this is asked time and again.
        """
        positive = margin[margin > 0]
        if len(positive) < least:
            return None
        reach = float(np.quantile(positive, FITTED))
        # Counted in bins, so that the cost of the fit does not depend on M.
        sides = [
            np.histogram(side, FIT_BINS, (0.0, 1.0))[0] for side in (positive / reach, -margin[margin <= 0] / reach)
        ]
        effect = 1.0 if sample is None else _design_effect(margin, sample, reach)
        if caution is None:
            caution = CAUTION_IF_STEADY if is_steady else CAUTION
        least_rise = LEAST_RISE_OF_TWO if is_binary else LEAST_RISE
        fit = fit_odds(*sides, least_rise=least_rise, caution=caution * math.sqrt(effect))
        gain, rising = fit.gain / max(alike, effect), fit.rising / max(alike, effect)
        is_single = sample is None and not is_binary
        least_gain, least_rising = (SURE_GAIN, SURE_RISING) if is_sure else (LEAST_GAIN, LEAST_RISING)
        is_likely = gain >= least_gain or rising >= least_rising if is_single else gain >= LEAST_GAIN_OF_OTHERS
        # Of a network that has learnt nothing, right labels look wrong as often by large margins as by small ones.
        if not fit.slope or not is_likely or fit.gain < LEAST_GAIN_EACH * len(positive):
            return None
        slope = max(0.0, fit.slope - fit.error) / reach
        beyond = (np.count_nonzero(positive > reach) + 1) / max(1, np.count_nonzero(margin < -reach))
        return cls(slope, reach, min(math.exp(-slope * reach), beyond), effect - 1)

    def odds(self, size: Doubles) -> Doubles:
        """float64[M], the odds at margins of these sizes."""
        odds: Doubles = np.where(size <= self.reach, np.exp(-self.slope * size), self.beyond)
        return odds

    def expected(self, margin: Doubles, least: Doubles) -> Doubles:
        """float64[K], right labels to expect with margins of at least ``least``, float64[K] and > 0."""
        size = np.sort(-margin[margin < 0])[::-1]
        total = np.append(0.0, np.cumsum(self.odds(size)))
        expected: Doubles = total[np.searchsorted(-size, -least, side="right")]
        return expected

    def longest(self, margin: Doubles, precision: float) -> NDArray[np.int64]:
        """int64[K], the longest list of the highest margins of which at least a share ``precision`` is wrong.

        The number of right labels in it is that which `expected` says, and one more; more where they come in clumps.
        """
        order = np.flatnonzero(margin > 0)
        order = order[np.argsort(-margin[order], kind="stable")]
        count = np.arange(1, len(order) + 1)
        right = self.expected(margin, margin[order])
        right += CLUMPED * np.sqrt(self.clump * right) + 1
        enough = count - right >= precision * count
        enough &= (count >= LEAST_LISTED) & ((1 - precision) * count >= LEAST_RIGHT - CLOSE)
        ends = np.flatnonzero(enough)
        return order[: int(ends[-1]) + 1] if len(ends) else order[:0]

    def score(self, margin: Doubles, at: Doubles | None = None) -> Doubles:
        """float64[M] in [0, 1], the estimated probability that each label is wrong; never falls with the margin.

        Args:
            margin: float64[M], of the samples that tell.
            at: float64[K], > 0 and falling: margins of others, whose probabilities are returned, float64[K].
        """
        chosen = np.flatnonzero(margin > 0)
        chosen = chosen[np.argsort(margin[chosen], kind="stable")]
        score = np.zeros(len(margin))
        num_bins = min(MOST_BINS, len(chosen) // BIN)
        if not num_bins:
            return score if at is None else np.zeros(len(at))
        starts = np.arange(num_bins) * len(chosen) // num_bins
        sizes = np.diff(np.append(starts, len(chosen)))
        edges = np.append(margin[chosen[starts]], np.inf)
        edges[0] = 0
        size = -margin[margin < 0]
        right = np.histogram(size, edges, weights=self.odds(size))[0]
        # The closest sequence that never falls, by pooling adjacent violators (Ayer et al., 1955).
        values = 1 - right / sizes
        pools: list[tuple[float, float, int]] = []
        for value, weight in zip(values.tolist(), sizes.tolist(), strict=True):
            count = 1
            while pools and pools[-1][0] >= value:
                other, much, more = pools.pop()
                value = (value * weight + other * much) / (weight + much)
                weight, count = weight + much, count + more
            pools.append((value, weight, count))
        rising: Doubles = np.repeat([value for value, _, _ in pools], [count for _, _, count in pools])
        steps = np.clip(rising, 0, 1)
        if at is not None:
            ends = np.searchsorted(at[::-1], edges[1:-1])
            return np.repeat(steps, np.diff(ends, prepend=0, append=len(at)))[::-1]
        score[chosen] = np.repeat(steps, sizes)
        return score


def _design_effect(margin: Doubles, sample: NDArray[np.int64], reach: float) -> float:
    """How many times larger the variance is because the labels of a sample err together; at least 1.

    One for tokens that have nothing to do with each other, ten and more for the pixels of an object. Source: Kish,
    Survey Sampling (1965), from what the positive margins of each sample exceed those to expect at their sizes.
    """
    size = np.abs(margin)
    near = np.flatnonzero(size <= reach)
    bins = np.minimum(size[near] * (EFFECT_BINS / reach), EFFECT_BINS - 1).astype(np.int64)
    is_positive = (margin[near] > 0).astype(float)
    share = np.bincount(bins, is_positive, EFFECT_BINS) / np.maximum(1, np.bincount(bins, minlength=EFFECT_BINS))
    excess = (is_positive - share[bins]) * size[near]
    of_samples = np.add.reduceat(excess, np.flatnonzero(np.diff(sample[near], prepend=-1)))
    return max(1.0, float(of_samples @ of_samples / max(excess @ excess, CLOSE)))
