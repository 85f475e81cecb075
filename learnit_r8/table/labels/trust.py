"""Which margins of a run may be judged: what weights and losses other than a cross entropy leave of them.

Right labels mirror each other only if all samples are fitted alike. What weighs less is not fitted, and a bounded loss
(such as the generalised cross entropy) hardly fits what it finds hard, so that hard right labels look ever more wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

PLAIN, EARLY, WEIGHED, BOUNDED = "plain", "early", "weighed", "bounded"
"""The margins as they were learned; those from before weights, or of the first visits; none that hold a promise; none
at all."""

MOST_ODD, LEAST_GROWTH = 0.05, 0.43
"""Of a cross entropy: the share of samples that may have less than its least value where another class is preferred;
and how much the losses grow from margins below 1 to those from 3 on, relative to that value, if its unit is another. In
benchmarks/verdicts.py a cross entropy, with weights and smoothing too, has .00 to .01 and .50 to .75, the generalised
one (GCE) .14 to .93 and .14 to .37."""

MOST_NEGATIVE = 0.01
"""Share of these samples that may have a loss below zero: rounding gives next to none, and ELR .03 to .92."""

TOLERANCE = 0.95
"""Share of its least value that a cross entropy has at least: bfloat16 has errors of half a per cent."""

NUM_SUMS = 7


def sums_of(losses: NDArray[np.float32], margin: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[7], sums over samples for which another class is preferred, for `trust_in`.

    How many they are, how many have a loss below the least cross entropy with their margin, log(1 + exp(margin)), and
    below zero; the losses and the least ones at margins below 1; and both at margins from 3 on.

    Args:
        losses: float32[M].
        margin: float32[M].
    """
    preferred = margin > 0
    loss, margin = losses[preferred].astype(np.float64), margin[preferred].astype(np.float64)
    least, is_low, is_high = np.logaddexp(0, margin), margin < 1, margin >= 3
    counts = len(loss), np.count_nonzero(loss < TOLERANCE * least), np.count_nonzero(loss < 0)
    return np.array([*counts, loss @ is_low, least @ is_low, loss @ is_high, least @ is_high])


def trust_in(sums: NDArray[np.float64]) -> str:
    """PLAIN, or EARLY or BOUNDED if the losses were no cross entropy, by the sums of `sums_of` over all visits.

    Of a loss that takes something off, as ELR does, the first visits are as with a cross entropy.
    """
    count, odd, negative, low, least_low, high, least_high = sums.tolist()
    if negative > MOST_NEGATIVE * count:
        return EARLY
    is_in_other_unit = high * least_low > LEAST_GROWTH * low * least_high
    return PLAIN if odd <= MOST_ODD * count or is_in_other_unit else BOUNDED


def least_trust(trusts: Iterable[str]) -> str:
    """How far the mean margins of several runs can be trusted."""
    found = set(trusts)
    return next((each for each in (BOUNDED, WEIGHED, EARLY) if each in found), PLAIN)
