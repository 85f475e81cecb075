"""Registry: policies by name, and the checks of users' policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .._validation import check_choice
from .balanced import Balanced, EvenGroups, Quartile, Shuffle, Steady
from .base import Around, Candidates, Context, Kept, Order, Policy
from .focus import Focus

SHUFFLE, STEADY = Shuffle(), Steady()

PolicyName = Literal["balanced", "quartile", "shuffle", "focus"]

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (Balanced(), Quartile(), SHUFFLE, Focus())}

GONE = {
    "match_mean": "examples/own_policy.py has it as a policy of your own, policy=MatchMean(), with the same batches",
    "steady": "recovery alone draws such batches; a policy of your own chooses samples in select (docs/policies.md)",
}
"""What to use in place of policies that have no name any more."""


def get_policy(policy: str | Policy) -> Policy:
    """The policy of that name, or the object itself.

    Raises:
        ValueError: no policy has that name.
        TypeError: neither a name nor a `Policy`.
    """
    if isinstance(policy, Policy):
        is_own = type(policy).__module__.rpartition(".")[0] == __package__
        if is_own and isinstance(policy, Around) and not isinstance(policy, _Checked):
            return replace(policy, inner=get_policy(policy.inner))
        return policy if is_own else _Checked(policy)
    if not isinstance(policy, str):
        raise TypeError(f"policy must be a name or a Policy, got {policy!r}.")
    if policy in GONE:
        raise ValueError(f"policy {policy!r} is no longer one of {sorted(POLICIES)}: {GONE[policy]}.")
    check_choice("policy", policy, sorted(POLICIES), " or a Policy")
    return POLICIES[policy]


def even_groups(
    policy: PolicyName | Policy = "balanced", *, exponent: float = 0.5, most_often: float = 10.0
) -> EvenGroups:
    """`EvenGroups` around a policy given by name or as an object."""
    return EvenGroups(get_policy(policy), exponent, most_often)


@dataclass(frozen=True)
class _Checked(Around):
    """A user's policy; raises if its results would lose or repeat samples."""

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    def __repr__(self) -> str:
        return repr(self.inner)

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        count = len(chunk.indices)
        answer = self.inner.select(chunk, context, rng)
        keep, weights = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        if np.shape(keep) != (count,) or np.asarray(keep).dtype != bool:
            raise ValueError(f"policy.select must return bool[{count}], got {_shape(keep)} from {self.inner!r}.")
        if weights is not None and np.shape(weights) != (count,):
            raise ValueError(f"policy.select must return weights float32[{count}] or None, got {_shape(weights)}.")
        if weights is not None and not np.isfinite(weights).all():
            raise ValueError(f"policy.select must return finite weights, got {weights!r} from {self.inner!r}.")
        return np.asarray(keep), None if weights is None else np.asarray(weights, np.float32)

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        order = np.asarray(self.inner.arrange(chunk, batch_size, rng))
        count = len(chunk.indices)
        met = np.zeros(count, bool)
        if order.shape == (count,) and np.issubdtype(order.dtype, np.integer):
            met[order[(order >= 0) & (order < count)]] = True
        if not met.all():
            raise ValueError(
                f"policy.arrange must return a permutation of range({count}), got {_shape(order)} from {self.inner!r}."
            )
        return order.astype(np.int64)


def _shape(value: Any) -> str:
    """A short description of what a policy returned."""
    array = np.asarray(value)
    return f"{array.dtype}{list(array.shape)} beginning with {array.ravel()[:8].tolist()}"
