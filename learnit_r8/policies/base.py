"""The base of all policies, and the types of their arguments and results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..table.label_noise import MarginLimit
    from ..table.labels.suspicion import Suspicion

Order = NDArray[np.int64]
Kept = tuple[NDArray[np.bool_], NDArray[np.float32] | None]
"""bool[C], which samples to visit, and float32[C] weights for their losses, or None."""


class Candidates(NamedTuple):
    """What a policy sees of the C samples of a chunk, in the random order of the pass.

    Attributes:
        indices: int64[C], their indices in the data set.
        loss: float32[C], estimated loss, NaN for unseen samples.
        last: float32[C], last observed loss; undefined for unseen samples.
        mean: float32[C], mean of the observed losses; undefined for unseen samples.
        usage_count: int64[C], times learned from.
        group: int64[C], code of the user's label; None without groups, and for `arrange` from B groups on.
        margin: float32[C], mean margins by which the model prefers another class, see `MarginLimit.margins`; None
            unless `Outlook.limit` is given.
    """

    indices: Order
    loss: NDArray[np.float32]
    last: NDArray[np.float32]
    mean: NDArray[np.float32]
    usage_count: NDArray[np.int64]
    group: NDArray[np.int64] | None
    margin: NDArray[np.float32] | None = None


class Outlook(NamedTuple):
    """A summary of all samples, from a random part of at most 16,384 of them.

    Attributes:
        is_exact: Whether losses were reported per sample. If not, means of parts do not show wrong labels, and a
            selection by batch means is no better than a random one.
        num_uses: Mean number of uses.
        hard_share: Share of the samples, without the suspects, whose mean loss is worse than untrained.
        middle_loss: Median of their last losses; NaN if none was seen.
        suspicion: The criterion for samples that look mislabelled; None if none do.
        limit: The criterion for those that do by their predictions, where losses alone do not tell; None if none do.
    """

    is_exact: bool = False
    num_uses: float = 0.0
    hard_share: float = 1.0
    middle_loss: float = math.nan
    suspicion: Suspicion | None = None
    limit: MarginLimit | None = None


class Context(NamedTuple):
    """What a policy knows apart from the chunk; the same for a whole pass.

    Attributes:
        progress: Finished share of the budget when the pass began, in [0, 1].
        pass_number: Number of the pass, 0-based; -1 for batches outside any pass.
        batch_size: B.
        untrained_loss: Loss of an untrained model; NaN before it is known.
        outlook: A summary of all samples, made only for policies that select.
        group_sizes: Number of samples in each group, by code; empty without groups.
    """

    progress: float
    pass_number: int
    batch_size: int
    untrained_loss: float
    outlook: Outlook = Outlook()
    group_sizes: tuple[int, ...] = ()


class Policy:
    """The base of all policies: every sample once per pass, in random order."""

    name = "shuffle"
    needs_exact = False
    """Whether `select` needs per-sample losses, and keeps all samples if `Outlook.is_exact` is false."""

    needs_groups = False
    """Whether ``groups=`` must be given."""

    weighs = False
    """Whether `select` is known to return weights sooner or later: loops that cannot take them refuse such a policy."""

    needs_predictions = False
    """Whether the weights come from predictions of one class a sample, and are all 1 without them."""

    @property
    def selects(self) -> bool:
        """Whether `select` may leave samples out; the pass then sweeps over the data until it has all its batches."""
        return type(self).select is not Policy.select

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        """Choose the samples of a chunk to visit.

        Args:
            chunk: The candidates.
            context: The state of the run.
            rng: The only source of randomness to use; keyed by seed, pass and chunk.

        Returns:
            bool[C], which to keep, and float32[C] weights for the losses, or None for no weights. A user's policy may
            return the first alone.
        """
        return np.ones(len(chunk.indices), bool), None

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        """Combine samples into batches.

        Args:
            chunk: The samples to visit.
            batch_size: B; consecutive runs of B positions become batches.
            rng: The only source of randomness to use.

        Returns:
            int64[C], a permutation of ``range(C)``: positions in ``chunk``, in drawing order.
        """
        return np.arange(len(chunk.indices))


@dataclass(frozen=True)
class Around(Policy):
    """Wraps another policy and passes everything to it; subclasses change a part of that.

    Args:
        inner: The policy to wrap.

    Raises:
        TypeError: ``inner`` is not a policy.
    """

    inner: Policy

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Policy):
            raise TypeError(f"inner must be a Policy, got {self.inner!r}.")

    @property
    def selects(self) -> bool:
        return self.inner.selects

    @property
    def weighs(self) -> bool:  # type: ignore[override]
        return self.inner.weighs

    @property
    def needs_predictions(self) -> bool:  # type: ignore[override]
        return self.inner.needs_predictions

    @property
    def needs_exact(self) -> bool:  # type: ignore[override]
        return self.inner.needs_exact

    @property
    def needs_groups(self) -> bool:  # type: ignore[override]
        return self.inner.needs_groups

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        return self.inner.select(chunk, context, rng)

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        return self.inner.arrange(chunk, batch_size, rng)
