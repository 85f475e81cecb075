"""The hard half, where that is safe, and without the samples that look mislabelled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._validation import is_number
from .balanced import Balanced
from .base import Candidates, Context, Kept, Order, Policy

LEAST_USES = 2.5
"""Mean uses before anything is skipped."""

GUARD_USES, GUARD_PROGRESS, GUARD_LEAST = 4, 0.1, 0.85
"""Mean uses and share of the budget before suspects are skipped; their least loss, as `Suspicion.flags` takes it."""


@dataclass(frozen=True)
class Focus(Policy):
    """Skips most of the easy half for a part of the training; with ``noise_guard`` also what looks mislabelled.

    The easy half: between ``begin`` and ``end`` of the budget the half of the samples with the lowest last loss is
    skipped with probability ``skip_easy``, anew in each pass, but only where few samples are hard (those whose mean
    loss is worse than untrained, without the suspects, are fewer than ``most_hard`` of all) and none are suspect, or
    the guard skips those. Where many samples are hard the model has not learnt enough yet to tell easy from useless,
    and wrong labels are the hardest of all: there skipping harms. Losses get no weights: those that would make up for
    what is skipped act as a higher learning rate.

    The guard: once samples were used 4 times on average and 10 % of the budget is spent, the suspects
    (`Suspicion.flags`, from 72 % of the untrained loss on) are skipped with probability ``skip_suspects``, unless they
    lose less than wrong labels must (`Suspicion.is_surprising`), or most of them are being learnt at the time, as rare
    classes are. Their mean loss hardly changes from then on, so the decision keeps. To the losses a rare class that is
    learnt late looks like wrong labels: the guard needs ``groups``, the labels, and suspects no class much more than
    the others. Where there are no classes, one group for all will do: ``groups=np.zeros(N)``.

    An epoch is N visits all the same, and the last ones go to all samples but the suspects. Without losses of single
    samples everything is visited once a pass.

    Args:
        noise_guard: Whether to skip samples that look mislabelled; takes losses of single samples.
        skip_easy: In [0, 1].
        skip_suspects: In [0, 1].
        begin: Share of the budget, in [0, 1].
        end: Share of the budget, in [begin, 1].
        most_hard: Share of the samples, in [0, 1].

    Raises:
        ValueError: an argument outside its range.
        TypeError: ``noise_guard`` is not a boolean.

    Source: measured against a plain shuffle with as many visits in ``benchmarks/learning.py``.
    """

    noise_guard: bool = False
    skip_easy: float = 0.95
    skip_suspects: float = 1.0
    begin: float = 0.25
    end: float = 0.9
    most_hard: float = 0.03

    name = "focus"
    needs_exact = True

    def __post_init__(self) -> None:
        if not isinstance(self.noise_guard, bool):
            raise TypeError(f"noise_guard must be True or False, got {self.noise_guard!r}.")
        for name in ("skip_easy", "skip_suspects", "begin", "most_hard"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must be in [0, 1], got {value!r}.")
        if not (is_number(self.end) and self.begin <= self.end <= 1):
            raise ValueError(f"end must be in [begin, 1] = [{self.begin!r}, 1], got {self.end!r}.")

    @property
    def needs_groups(self) -> bool:  # type: ignore[override]
        return self.noise_guard

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        luck = rng.random(len(chunk.indices), np.float32)
        outlook = context.outlook
        keep = np.ones(len(luck), bool)
        is_time = context.progress >= GUARD_PROGRESS and outlook.num_uses >= GUARD_USES
        guarding = outlook.suspicion if self.noise_guard and is_time else None
        # Suspects that nobody skips would be most of the hard half.
        is_clean = guarding is outlook.suspicion
        is_learnt = outlook.num_uses >= LEAST_USES and outlook.hard_share < self.most_hard
        if outlook.is_exact and is_clean and is_learnt and self.begin <= context.progress < self.end:
            easy = (chunk.last < np.float32(outlook.middle_loss)) & (chunk.usage_count > 0)
            keep = ~(easy & (luck < self.skip_easy))
        if guarding is not None:
            suspected = guarding.flags(chunk.mean, chunk.usage_count, chunk.group, least=GUARD_LEAST)
            keep = np.where(suspected, luck >= self.skip_suspects, keep)
        return keep, None

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        return Balanced().arrange(chunk, batch_size, rng)
