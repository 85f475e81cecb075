"""Focus: visits mainly the harder half of the samples where that is safe, optionally without suspect labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .._validation import check_share, is_number
from .balanced import Balanced
from .base import Candidates, Context, Kept, Order, Policy

LEAST_USES = 2.5
"""Mean uses from which samples may be skipped."""

WEIGH, WEIGH_PROGRESS, LEAST_WEIGHT = "weigh", 0.2, 0.1
"""The noise guard that weighs, the share of the budget from which it does, and the least mean of weights that is made
up for."""

GUARD_USES, GUARD_PROGRESS, GUARD_LEAST = 4, 0.1, 0.85
"""Mean uses and share of the budget from which suspects are skipped; their least loss, see `Suspicion.flags`."""


@dataclass(frozen=True)
class Focus(Policy):
    """Skips most of the easy half during part of the training; with ``noise_guard`` also samples that look mislabelled.

    The easy half: between ``begin`` and ``end`` of the budget, the half of the samples with the lowest last losses is
    skipped with probability ``skip_easy``, drawn again in each pass. This requires that few samples are hard (without
    the suspects, less than ``most_hard`` of all have a mean loss worse than untrained), and that there are no suspects
    unless the guard skips them. If many samples are hard, the model has not learnt enough to tell easy from useless,
    and wrong labels are the hardest of all: skipping would harm. Losses get no weights, as weights that make up for
    skipped samples act like a higher learning rate.

    The guard: once samples were used 4 times on average and 10 % of the budget is spent, the suspects
    (`Suspicion.flags`, from 72 % of the untrained loss on) are skipped with probability ``skip_suspects``, unless their
    losses are lower than those of wrong labels must be (`Suspicion.is_surprising`), or most of them are being learnt,
    as rare classes are. Their mean loss hardly changes from then on, so the decision stays. By its losses, a rare class
    that is learnt late looks like wrong labels; so the guard needs the labels as ``groups``, and suspects no class much
    more than others. If there are no classes, use one group for all: ``groups=np.zeros(N)``.

    Where the losses do not tell wrong labels from hard samples, as in models far from fitting their data, the guard
    goes by predictions, if they are reported with the losses: it leaves out the list that the margins give for a
    precision of .7 at the beginning of each pass, and whatever was left out before. With ``noise_guard="weigh"`` it
    leaves nobody out by predictions: from 20 % of the budget on, each loss weighs as much as the label is likely to be
    right by its margin, and the weights of a chunk are 1 on average. All samples are visited, so that a label counts
    again as soon as the network learns it. The weights are ``ticket.weights``: a loop needs `draw` and `report`, or an
    adapter that takes losses of samples. The list of suspects goes by the margins from before the weights.

    An epoch is still N visits, and the last ones go to all samples except the suspects. Without per-sample losses,
    every sample is visited once per pass.

    Args:
        noise_guard: Whether to skip samples that look mislabelled; needs per-sample losses. "weigh": where predictions
            decide, to visit all of them, with weights.
        skip_easy: Probability, in [0, 1].
        skip_suspects: Probability, in [0, 1].
        begin: Share of the budget, in [0, 1].
        end: Share of the budget, in [begin, 1].
        most_hard: Share of the samples, in [0, 1].

    Raises:
        ValueError: an argument is outside its range.
        TypeError: ``noise_guard`` is neither a boolean nor "weigh".

    Source: measured against a plain shuffle with as many visits in ``benchmarks/learning.py``.
    """

    noise_guard: bool | Literal["weigh"] = False
    skip_easy: float = 0.95
    skip_suspects: float = 1.0
    begin: float = 0.25
    end: float = 0.9
    most_hard: float = 0.03

    name = "focus"
    needs_exact = True

    def __post_init__(self) -> None:
        if not (isinstance(self.noise_guard, bool) or self.noise_guard == WEIGH):
            raise TypeError(f"noise_guard must be True, False or {WEIGH!r}, got {self.noise_guard!r}.")
        for name in ("skip_easy", "skip_suspects", "begin", "most_hard"):
            check_share(name, getattr(self, name))
        if not (is_number(self.end) and self.begin <= self.end <= 1):
            raise ValueError(f"end must be in [begin, 1] = [{self.begin!r}, 1], got {self.end!r}.")

    @property
    def needs_groups(self) -> bool:  # type: ignore[override]
        return bool(self.noise_guard)

    @property
    def weighs(self) -> bool:  # type: ignore[override]
        return self.noise_guard == WEIGH

    needs_predictions = weighs

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        luck = rng.random(len(chunk.indices), np.float32)
        outlook = context.outlook
        keep, weights = np.ones(len(luck), bool), None
        is_time = context.progress >= GUARD_PROGRESS and outlook.num_uses >= GUARD_USES
        guarding = outlook.suspicion if self.noise_guard and is_time else None
        limit = outlook.limit if self.noise_guard and is_time else None
        # Suspects that are not skipped would make up most of the hard half.
        is_clean = guarding is outlook.suspicion and limit is outlook.limit
        is_learnt = outlook.num_uses >= LEAST_USES and outlook.hard_share < self.most_hard
        if outlook.is_exact and is_clean and is_learnt and self.begin <= context.progress < self.end:
            easy = (chunk.last < np.float32(outlook.middle_loss)) & (chunk.usage_count > 0)
            keep = ~(easy & (luck < self.skip_easy))
        if guarding is not None:
            suspected = guarding.flags(chunk.mean, chunk.usage_count, chunk.group, least=GUARD_LEAST)
            keep = np.where(suspected, luck >= self.skip_suspects, keep)
        elif limit is not None and chunk.margin is not None:
            if not self.weighs:
                keep = np.where(limit.flags(chunk.margin, chunk.group), luck >= self.skip_suspects, keep)
            elif limit.levels[0] and context.progress >= WEIGH_PROGRESS:
                weights = 1 - limit.wrong(chunk.margin, chunk.group)
                # Less weight in all would act like a lower learning rate.
                weights /= np.maximum(weights.mean(), LEAST_WEIGHT)
        return keep, weights

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        return Balanced().arrange(chunk, batch_size, rng)
