"""Even groups: visits rare groups more often, by leaving out samples of common ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .._validation import is_number
from .balanced import Balanced
from .base import Around, Candidates, Context, Kept, Policy


@dataclass(frozen=True)
class EvenGroups(Around):
    """Another policy, with rare groups visited more often than their share of the data, and common ones less.

    A group with n samples gets visits in proportion to n ** ``exponent``: 1 changes nothing, 0.5 removes half of the
    difference (on a log scale), with 0 all groups get the same. An epoch is still N visits: in each pass, random
    samples of common groups are left out.

    Args:
        inner: The policy that selects and arranges samples.
        exponent: In [0, 1].
        most_often: Most visits of a sample relative to those of a sample in the largest group, >= 1; without a limit,
            groups of a few samples would be memorised.

    Raises:
        ValueError: the exponent or the limit is outside its range.
        TypeError: ``inner`` is not a policy.

    Source: square-root sampling of Mahajan et al. (arXiv:1805.00932) is 0.5, class-balanced sampling 0; compared by
    Kang et al. (arXiv:1910.09217). Measured on digits in ``benchmarks/learning.py``.
    """

    inner: Policy = field(default_factory=Balanced)
    exponent: float = 0.5
    most_often: float = 10.0

    name = "even_groups"
    selects = True
    needs_groups = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.exponent) and 0 <= self.exponent <= 1):
            raise ValueError(f"exponent must be in [0, 1], got {self.exponent!r}.")
        if not (is_number(self.most_often) and 1 <= self.most_often < np.inf):
            raise ValueError(f"most_often must be a number >= 1, got {self.most_often!r}.")

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        keep, weights = self.inner.select(chunk, context, rng)
        size = np.array(context.group_sizes, np.float64)
        rate = np.minimum((size / size.max()) ** (self.exponent - 1), self.most_often)
        chance = (rate / rate.max()).astype(np.float32)
        return keep & (rng.random(len(chunk.indices), np.float32) < chance[chunk.group]), weights
