"""Selections from elsewhere, written from their papers on our policy interface: the peers of benchmarks/learning.py.

A chunk is all of the data there: the tasks have fewer than 25 thousand samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learnit_r8 import Candidates, Context, Policy
from learnit_r8.policies.base import Kept


@dataclass(frozen=True)
class InfoBatch(Policy):
    """Prunes samples below the mean of the last losses at random; the others of that part count for those as well.

    Args:
        prune: Probability r of leaving out a sample below the mean; those that stay are weighted by 1 / (1 - r).
        end: Share of the budget from which on everything is visited.
        is_normalised: Whether the weights are divided by their mean. As published they are not, which raises the mean
            step by what was left out, like a higher learning rate.

    Source: Qin et al., "InfoBatch", arXiv:2303.04947; r = 0.5 and 0.875 are its defaults.
    """

    prune: float = 0.5
    end: float = 0.875
    is_normalised: bool = False

    name = "infobatch"
    needs_exact = True

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        keep, weights = np.ones(len(chunk.indices), bool), np.ones(len(chunk.indices), np.float32)
        seen = chunk.usage_count > 0
        if context.progress >= self.end or not seen.any():
            return keep, weights
        low = seen & (chunk.last < chunk.last[seen].mean())
        keep[low] = rng.random(int(low.sum())) >= self.prune
        weights[low] = 1 / (1 - self.prune)
        return keep, weights / weights[keep].mean() if self.is_normalised and keep.any() else weights


@dataclass(frozen=True)
class ImportanceSampling(Policy):
    """Visits samples with a probability that rises with their last loss, and weights them by its inverse.

    A sample is kept with probability ``q = min(1, share * s / mean(s))``, ``s = last + floor * mean(last)``, and its
    weight is ``mean(q) / q``: the expected gradient is that of a plain shuffle.

    Args:
        share: Mean probability before the bound of 1, in (0, 1]; a pass sweeps over the data about 1 / share times.
        floor: Smoothing; without it what was learnt long ago would get weights without bound.

    Source: Zhao & Zhang, arXiv:1401.2753 (unbiased weights); Katharopoulos & Fleuret, arXiv:1803.00942 (the loss in
    place of the norm of the gradient, smoothed). They draw with replacement; we keep or leave each sample once a sweep.
    """

    share: float = 0.5
    floor: float = 0.5

    name = "importance"
    needs_exact = True

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        seen = chunk.usage_count > 0
        last = np.where(seen, np.maximum(chunk.last, 0), 0)
        mean = last[seen].mean() if seen.any() else 0.0
        if not mean > 0:
            return np.ones(len(last), bool), np.ones(len(last), np.float32)
        score = np.where(seen, last, mean) + self.floor * mean
        chance = np.minimum(1, self.share * score / score.mean())
        return rng.random(len(last)) < chance, (chance.mean() / chance).astype(np.float32)
