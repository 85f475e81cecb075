"""Batch policies: which samples come next. Frozen: what they know of a sample comes in with the chunk.

A policy is a *selection* (which samples of a chunk to visit this pass) and an *arrangement* (who goes with whom).
A chunk is a uniform random part of the data, about 16 thousand samples, in random order. To write one, subclass
`Policy` and override `select`, `arrange` or both; ``docs/policies.md`` has an example.

Ties are broken by the chunk's own random order, through sorts of distinct integers: the result does not depend on
the processor, which numpy's ``argsort`` of floats does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]


class Candidates(NamedTuple):
    """What a policy sees of the C samples of a chunk, in the random order of the pass.

    Attributes:
        indices: int64[C], their positions in the data set.
        loss: float32[C], estimated loss, NaN where never seen.
        last: float32[C], last observation; means nothing where never seen.
        mean: float32[C], mean of the observations; means nothing where never seen.
        usage_count: int64[C], times learned from.
        group: int64[C], code of the user's label; 0 without groups.
    """

    indices: Order
    loss: NDArray[np.float32]
    last: NDArray[np.float32]
    mean: NDArray[np.float32]
    usage_count: NDArray[np.int64]
    group: NDArray[np.int64]

    def subset(self, rows: NDArray[Any]) -> Candidates:
        """The candidates at some positions: a boolean mask or integers."""
        return Candidates(*(field[rows] for field in self))


class Context(NamedTuple):
    """What a policy knows besides the chunk; the same for a whole pass.

    Attributes:
        progress: Finished share of the budget when the pass began, in [0, 1].
        pass_number: 0 for the cataloguing pass.
        batch_size: B.
        untrained_loss: Loss of a model that has learnt nothing; NaN before it is known.
    """

    progress: float
    pass_number: int
    batch_size: int
    untrained_loss: float


class Policy:
    """Everything once a pass, in random order: the base of all policies."""

    name = "shuffle"
    selects = False
    """Whether `select` may leave samples out; the pass then sweeps over the data until its batches are full."""

    def select(
        self, chunk: Candidates, context: Context, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        """Choose the samples of a chunk to visit.

        Args:
            chunk: The candidates.
            context: Where the run stands.
            rng: The only source of randomness; keyed by seed, pass and chunk.

        Returns:
            bool[C], which to keep, and float32[C] weights for the loss, or None for no weights.
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


@dataclass(frozen=True)
class Shuffle(Policy):
    """Every sample once a pass in random order: what a plain shuffle does. The baseline."""

    name = "shuffle"


@dataclass(frozen=True)
class Balanced(Policy):
    """Every sample once a pass, each batch one sample from each of B loss strata, least used first.

    With S, the next multiple of 4 from B, a chunk is cut into S strata by loss and place p of the order takes the
    next sample of stratum ``spread(S)[(p + shift) % S]``. Four consecutive places hold one sample of each loss
    quartile, and any run of places about equal shares of finer quantiles, so parts and ranks may take slices.
    Which strata get the remainder (C mod S) is random: cutting it off the sorted list would starve the hardest.
    With groups, strata are cut from the samples sorted by group, then loss.

    It makes the batch loss smoother; it does not lower the variance of the gradient, nor change the final accuracy
    (``benchmarks/variance.py``). Groups do lower the variance of the gradient.
    """

    name = "balanced"

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        count = len(chunk.indices)
        strata = -(-batch_size // 4) * 4
        ranked = _by_loss(chunk.loss)
        if chunk.group.any():
            ranked = ranked[np.argsort(chunk.group[ranked], kind="stable")]
        height, remainder = -(-count // strata), count % strata
        columns = _spread(strata)
        keys = _usage_first(chunk.usage_count, ranked)
        if remainder:
            columns = np.roll(columns, -int(rng.bit_generator.random_raw() % strata))
            sizes = np.full(strata, height - 1)
            sizes[columns[:remainder]] += 1
            rows = np.full((strata, height), np.iinfo(keys.dtype).max, keys.dtype)
            rows[np.arange(height) < sizes[:, None]] = keys
        else:
            rows = keys.reshape(strata, height)
        # Positions are in random order already, so sorting a stratum by position shuffles it by loss.
        rows.sort(axis=1)
        return rows[columns].T.ravel()[:count].astype(np.int64) & _POSITION


@dataclass(frozen=True)
class Quartile(Policy):
    """Every sample once a pass, each batch its share of Q1, of Q2-Q3 and of Q4, least used first in each.

    Places take Q1, middle, Q4, middle, in turn, so that every run of places holds a quarter, a half and a quarter.

    Source: README of learnit-r8, "Intelligent Batch Construction".
    """

    name = "quartile"

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        count = len(chunk.indices)
        keys = _usage_first(chunk.usage_count, _by_loss(chunk.loss))
        easy, hard = -(-count // 4), (count + 1) // 4
        order = np.empty(count, np.int64)
        order[0::4] = np.sort(keys[:easy])
        order[1::2] = np.sort(keys[easy : count - hard])
        order[2::4] = np.sort(keys[count - hard :])
        return order & _POSITION


@dataclass(frozen=True)
class MatchMean(Policy):
    """Another policy's batches, with samples swapped until each batch's mean loss is near that of the chunk.

    In every round the batches are paired from both ends of their ranking by mean loss, and a pair swaps the highest
    loss of the one for the lowest of the other if that lessens the larger of their two gaps.

    Args:
        inner: The policy that proposes the batches.
        tolerance: Accepted gap between batch mean and chunk mean, relative to the latter, > 0.
        max_swaps: Rounds, >= 0.

    Raises:
        ValueError: a tolerance or number of rounds outside its range.

    Source: "Batch Loss Targeting" in the README of the public prototype of learnit-r8.
    """

    inner: Policy = Shuffle()
    tolerance: float = 0.1
    max_swaps: int = 5

    name = "match_mean"

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Policy):
            raise TypeError(f"inner must be a Policy, got {self.inner!r}.")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {self.tolerance!r}.")
        if self.max_swaps < 0:
            raise ValueError(f"max_swaps must be >= 0, got {self.max_swaps!r}.")

    @property
    def selects(self) -> bool:  # type: ignore[override]
        return self.inner.selects

    def select(
        self, chunk: Candidates, context: Context, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        return self.inner.select(chunk, context, rng)

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        order = self.inner.arrange(chunk, batch_size, rng).copy()
        loss = _filled(chunk.loss).astype(np.float64)
        target = loss.mean()
        rows = len(order) // batch_size
        batches = order[: rows * batch_size].reshape(rows, batch_size)
        for _ in range(self.max_swaps):
            if not _swap_extremes(batches, loss, target, self.tolerance * abs(target)):
                break
        return order


@dataclass(frozen=True)
class Steady(Policy):
    """Only the quarter of the seen samples with the lowest loss (Q1), least used first.

    Used by recovery to steady the training after a refused loss.

    Source: README of learnit-r8, "Stability & Automated Recovery".
    """

    name = "steady"
    selects = True

    def select(
        self, chunk: Candidates, context: Context, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        seen = int((chunk.usage_count > 0).sum())
        lowest = _by_loss(np.where(np.isnan(chunk.loss), np.float32(np.inf), chunk.loss))
        keep = np.zeros(len(chunk.indices), bool)
        keep[lowest[: min(seen, max(seen // 4, context.batch_size))]] = True
        return keep, None

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        positions = np.arange(len(chunk.indices))
        return np.sort(_usage_first(chunk.usage_count, positions)).astype(np.int64) & _POSITION


def match_mean(policy: str | Policy = "shuffle", *, tolerance: float = 0.1, max_swaps: int = 5) -> MatchMean:
    """`MatchMean` around a policy given by name or as an object."""
    return MatchMean(get_policy(policy), tolerance, max_swaps)


SHUFFLE, STEADY = Shuffle(), Steady()

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (Balanced(), Quartile(), SHUFFLE, MatchMean(), STEADY)}


def get_policy(policy: str | Policy) -> Policy:
    """The policy of that name, or the object itself.

    Raises:
        ValueError: no policy has that name.
        TypeError: neither a name nor a `Policy`.
    """
    if isinstance(policy, Policy):
        return policy if type(policy) in _OWN else _Checked(policy)
    if not isinstance(policy, str):
        raise TypeError(f"policy must be a name or a Policy, got {policy!r}.")
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {sorted(POLICIES)} or a Policy, got {policy!r}.")
    return POLICIES[policy]


@dataclass(frozen=True)
class _Checked(Policy):
    """A policy from outside; refuses answers that would lose or repeat samples."""

    inner: Policy

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def selects(self) -> bool:  # type: ignore[override]
        return self.inner.selects

    def select(
        self, chunk: Candidates, context: Context, rng: np.random.Generator
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        count = len(chunk.indices)
        keep, weights = self.inner.select(chunk, context, rng)
        if np.shape(keep) != (count,) or np.asarray(keep).dtype != bool:
            raise ValueError(f"policy.select must return bool[{count}] and weights, got {keep!r} from {self.inner!r}.")
        if weights is not None and np.shape(weights) != (count,):
            raise ValueError(f"policy.select must return weights of shape ({count},) or None, got {weights!r}.")
        return np.asarray(keep), None if weights is None else np.asarray(weights, np.float32)

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        order = np.asarray(self.inner.arrange(chunk, batch_size, rng))
        count = len(chunk.indices)
        met = np.zeros(count, bool)
        if order.shape == (count,) and np.issubdtype(order.dtype, np.integer):
            met[order % count] = True
        if not met.all():
            raise ValueError(f"policy.arrange must return a permutation of range({count}), got {order!r} from {self.inner!r}.")
        return order.astype(np.int64)


_OWN = frozenset(type(policy) for policy in POLICIES.values())

_POSITION = np.int64(2**32 - 1)


def _by_loss(loss: NDArray[np.float32]) -> Order:
    """int64[C], positions by rising loss, ties and unseen samples in the chunk's order."""
    bits = _filled(loss).view(np.int32).astype(np.int64)
    # Negative floats order backwards as integers; flipping their lower bits puts them right.
    if bits.min() < 0:
        bits ^= (bits >> 63) & 0x7FFFFFFF
    bits <<= 32
    bits |= np.arange(len(loss))
    bits.sort()
    bits &= _POSITION
    return bits


def _filled(loss: NDArray[np.float32]) -> NDArray[np.float32]:
    """The losses with unseen samples spread evenly over the ranks of the seen ones."""
    unseen = np.isnan(loss)
    if not unseen.any():
        return loss
    known = np.sort(loss[~unseen])
    if not known.size:
        return np.zeros_like(loss)
    count = int(unseen.sum())
    filled = loss.copy()
    filled[unseen] = known[(2 * np.arange(count) + 1) * len(known) // (2 * count)]
    return filled


def _usage_first(usage_count: NDArray[np.int64], positions: Order) -> NDArray[np.signedinteger[Any]]:
    """Keys of some positions that sort by use, then by position; the lower 32 bits are the position."""
    if usage_count.min() == usage_count.max():
        return positions.astype(np.int32)
    return usage_count[positions] << 32 | positions


@functools.lru_cache(maxsize=8)
def _spread(strata: int) -> Order:
    """int64[S]: which stratum each place takes, so that every run of places is spread over all strata.

    Quartiles alternate with period 4; within a quartile the strata follow the van der Corput sequence. S is a
    multiple of 4.

    >>> _spread(8).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    quarter = strata // 4
    halves = np.arange(quarter, dtype=np.uint64)
    inverse = np.zeros(quarter)
    scale = 0.5
    while halves.any():
        inverse += (halves & np.uint64(1)) * scale
        halves >>= np.uint64(1)
        scale /= 2
    within = np.argsort(np.argsort(inverse))
    return (np.array([0, 2, 1, 3]) * quarter + within[:, None]).ravel()


def _swap_extremes(batches: Order, loss: NDArray[np.float64], target: float, tolerance: float) -> bool:
    """Swap one sample between batches paired from both ends of the ranking by mean loss; False if none moved."""
    values = loss[batches]
    gap = values.mean(axis=1) - target
    ranked = np.argsort(gap, kind="stable")
    low, high = ranked[: len(ranked) // 2], ranked[::-1][: len(ranked) // 2]
    top, bottom = values[high].argmax(axis=1), values[low].argmin(axis=1)
    moved = (values[high, top] - values[low, bottom]) / batches.shape[1]
    before = np.maximum(np.abs(gap[high]), np.abs(gap[low]))
    after = np.maximum(np.abs(gap[high] - moved), np.abs(gap[low] + moved))
    better = (before > tolerance) & (after < before)
    high, low, top, bottom = high[better], low[better], top[better], bottom[better]
    batches[high, top], batches[low, bottom] = batches[low, bottom], batches[high, top]
    return bool(len(high))
