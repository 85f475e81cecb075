"""What a policy sees, what it answers, and the base of all policies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..table.label_noise import Suspicion

Order = NDArray[np.int64]
Kept = tuple[NDArray[np.bool_], NDArray[np.float32] | None]
"""Which samples to keep, and what to weight them by."""


class Candidates(NamedTuple):
    """What a policy sees of the C samples of a chunk, in the random order of the pass.

    Attributes:
        indices: int64[C], their positions in the data set.
        loss: float32[C], estimated loss, NaN where never seen.
        last: float32[C], last observation; means nothing where never seen.
        mean: float32[C], mean of the observations; means nothing where never seen.
        usage_count: int64[C], times learned from.
        group: int64[C], code of the user's label; None without groups.
    """

    indices: Order
    loss: NDArray[np.float32]
    last: NDArray[np.float32]
    mean: NDArray[np.float32]
    usage_count: NDArray[np.int64]
    group: NDArray[np.int64] | None

    def subset(self, rows: NDArray[Any]) -> Candidates:
        """The candidates at some positions: a boolean mask or integers."""
        return Candidates(*(None if field is None else field[rows] for field in self))  # type: ignore[arg-type]


class Outlook(NamedTuple):
    """What the table says of all the samples, from a random part of at most 16,384 of them.

    Attributes:
        is_exact: Whether losses were reported per sample: from means of parts wrong labels cannot be told from others,
            and a selection by batch means is no better than a random one.
        num_uses: Mean number of uses.
        hard_share: Share of the samples, without the suspects, whose mean loss is worse than untrained.
        middle_loss: Median of their last losses; NaN where nothing was seen.
        suspicion: How to tell samples that look mislabelled; None where none do.
    """

    is_exact: bool = False
    num_uses: float = 0.0
    hard_share: float = 1.0
    middle_loss: float = math.nan
    suspicion: Suspicion | None = None


class Context(NamedTuple):
    """What a policy knows besides the chunk; the same for a whole pass.

    Attributes:
        progress: Finished share of the budget when the pass began, in [0, 1].
        pass_number: 0 for the cataloguing pass, -1 for batches outside any pass.
        batch_size: B.
        untrained_loss: Loss of a model that has learnt nothing; NaN before it is known.
        outlook: What the table says of all the samples; taken only for policies that select.
        group_sizes: Samples in the data of each group, by code; empty without groups.
    """

    progress: float
    pass_number: int
    batch_size: int
    untrained_loss: float
    outlook: Outlook = Outlook()
    group_sizes: tuple[int, ...] = ()


class Policy:
    """Everything once a pass, in random order: the base of all policies."""

    name = "shuffle"
    is_random = True
    """Whether `rng` is used. Making a generator costs as much as planning a thousand samples."""

    needs_exact = False
    """Whether `select` rests on losses of single samples, and keeps everything where `Outlook.is_exact` is false."""

    needs_groups = False
    """Whether ``groups=`` must be given."""

    uses_groups = True
    """Whether ``groups=`` changes anything; where it does not it is refused."""

    @property
    def selects(self) -> bool:
        """Whether `select` may leave samples out; the pass then sweeps over the data until its batches are full."""
        return type(self).select is not Policy.select

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        """Choose the samples of a chunk to visit.

        Args:
            chunk: The candidates.
            context: Where the run stands.
            rng: The only source of randomness; keyed by seed, pass and chunk.

        Returns:
            bool[C], which to keep, and float32[C] weights for the loss, or None for no weights. Your own policy may
            return the first alone.
        """
        return np.ones(len(chunk.indices), bool), None

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        """Choose who goes with whom.

        Args:
            chunk: The samples to visit.
            batch_size: B; consecutive runs of B places become batches.
            rng: The only source of randomness.

        Returns:
            int64[C], a permutation of ``range(C)``: positions in ``chunk``, in drawing order.
        """
        return np.arange(len(chunk.indices))
