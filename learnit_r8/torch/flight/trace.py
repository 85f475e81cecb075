"""What a watched run of a batch has shown: its loss, the first operation that goes wrong, and its gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

FORWARD, BACKWARD = "forward", "backward"
HOOK = "a hook of "
"""What the name of a parameter follows where its hook is at fault."""

FOREIGN = "reads"
"""The operation of a fault that is none: it reads a value that is neither a weight nor in the batch."""


class Fault(NamedTuple):
    """An operation that makes a value that is not finite out of finite ones.

    Attributes:
        phase: "forward" or "backward".
        where: The module; "" outside of all.
        op: The operation.
        what: "NaN" or "Inf".
        site: File and line of the code that calls it; "" if it is not known.
        number: Which operation of the run it is.
        is_early: Whether it came before the model was called.
        factor: The number that it multiplies with or divides by; NaN if it is no such one.
    """

    phase: str
    where: str
    op: str
    what: str
    site: str
    number: int
    is_early: bool = False
    factor: float = math.nan


@dataclass
class Trace:
    """What a watched run has shown.

    Attributes:
        loss: The loss; NaN if there is none.
        losses: Those of the rows, if it gave them.
        error: What it raised.
        faults: In their order.
        origin: Number in `faults` of that which made the loss what it is; or what else did. None if it is finite.
        modules: The largest absolute output of each module.
        first_module: The first module whose output is not finite; "" for none.
        bad_labels: Rows whose labels a loss cannot take, and what is wrong with them.
        bad_gradients: Parameters whose gradient is not finite, in the order of the backward pass.
        has_gradients: Whether there was a backward pass.
        read: Names of arrays of the batch that the modules have read, or what was made of them; not labels and weights.
        is_finite: Whether all that the model returned was finite, where there is no loss.
    """

    loss: float = math.nan
    losses: torch.Tensor | None = None
    error: Exception | None = None
    faults: list[Fault] = field(default_factory=list)
    origin: int | None = None
    modules: dict[str, float] = field(default_factory=dict)
    first_module: str = ""
    bad_labels: tuple[tuple[int, ...], str] | None = None
    bad_gradients: list[str] = field(default_factory=list)
    has_gradients: bool = False
    read: set[str] = field(default_factory=set)
    is_finite: bool = True

    @property
    def fault(self) -> Fault | None:
        """The operation that made the loss, or else the gradient, what it is."""
        if self.origin is not None and self.origin >= 0:
            return self.faults[self.origin]
        if self.origin is None and self.bad_gradients:
            return next((each for each in self.faults if each.phase == BACKWARD), None)
        return None


def extent_of(value: torch.Tensor) -> float:
    """The largest absolute value; NaN if there is one in it. Forty times as fast as to ask which are finite."""
    try:
        low, high = torch.aminmax(value.detach())
        return max(abs(low.item()), abs(high.item())) if low == low else math.nan
    except (RuntimeError, NotImplementedError):
        # A sparse tensor, or one of a kind that cannot be looked at.
        return 0.0
