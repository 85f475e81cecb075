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
benchmarks/verdicts.py a cross entropy, with weights and smoothing too, has .00 and .60 to .92, the generalised one
(GCE) .29 to 1.00 and .00 to .39."""

MOST_NEGATIVE = 0.01
"""Share of these samples that may have a loss below zero: rounding gives next to none, and ELR .15 to 1.00."""

TOLERANCE = 0.95
"""Share of its least value that a cross entropy has at least: bfloat16 has errors of half a per cent."""


def trust_in(losses: NDArray[np.float32], margin: NDArray[np.float32]) -> str:
    """PLAIN, or EARLY or BOUNDED if the losses are no cross entropy, by those of the last visits, float32[M] both.

    The cross entropy of a label that another class beats by m is at least log(1 + exp(m)). Of a loss that takes
    something off, as ELR does, the first visits are as with a cross entropy.
    """
    preferred = margin > 0
    loss, margin = losses[preferred].astype(np.float64), margin[preferred].astype(np.float64)
    least, is_low, is_high = np.logaddexp(0, margin), margin < 1, margin >= 3
    if np.count_nonzero(loss < 0) > MOST_NEGATIVE * len(loss):
        return EARLY
    is_in_other_unit = (loss @ is_high) * (least @ is_low) > LEAST_GROWTH * (loss @ is_low) * (least @ is_high)
    is_plain = np.count_nonzero(loss < TOLERANCE * least) <= MOST_ODD * len(loss) or is_in_other_unit
    return PLAIN if is_plain else BOUNDED


def least_trust(trusts: Iterable[str]) -> str:
    """How far the mean margins of several runs can be trusted."""
    found = set(trusts)
    return next((each for each in (BOUNDED, WEIGHED, EARLY) if each in found), PLAIN)
