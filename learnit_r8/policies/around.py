"""The base of policies that wrap another one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Candidates, Context, Kept, Order, Policy


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
    def needs_exact(self) -> bool:  # type: ignore[override]
        return self.inner.needs_exact

    @property
    def needs_groups(self) -> bool:  # type: ignore[override]
        return self.inner.needs_groups

    @property
    def uses_groups(self) -> bool:  # type: ignore[override]
        return self.inner.uses_groups

    def select(self, chunk: Candidates, context: Context, rng: np.random.Generator) -> Kept:
        return self.inner.select(chunk, context, rng)

    def arrange(self, chunk: Candidates, batch_size: int, rng: np.random.Generator) -> Order:
        return self.inner.arrange(chunk, batch_size, rng)
