"""What is wrong in weights and in an optimizer's state, on their own and beside a backup."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .trace import extent_of

ALONE = 100.0
"""How many times as far as any other of its array an element has moved that has changed alone."""

MOVED = 0.1
"""Share of its length from which an array counts as moved."""

DECAYED = 0.5
"""Share of what is left of Adam's squares, if no gradient came at all, below which something else has changed them."""

BEYOND = 4.0
"""Factor of the bound of Adam's averages beyond which they are not averages of gradients; low precision needs some."""


class Moved(NamedTuple):
    """How far weights are from those of a backup.

    Attributes:
        share: Length of the change, as a share of the length of the weights.
        name: The parameter with an element that has changed alone; "" for none.
        flat: Its place in the flattened array.
        now, then: Its value, and that in the backup.
        many: Share of the arrays that have moved by a tenth of their length.
        farthest, farthest_share: The array that has moved farthest, as a share of its length.
    """

    share: float
    name: str = ""
    flat: int = 0
    now: float = math.nan
    then: float = math.nan
    many: float = 0.0
    farthest: str = ""
    farthest_share: float = 0.0

    def at(self, shape: torch.Size) -> list[int]:
        """The place of the element."""
        place, left = [], self.flat
        for size in reversed(shape):
            place.append(left % size)
            left //= size
        return place[::-1]


class OptimizerFault(NamedTuple):
    """A part of an optimizer's state that no update can have made.

    Attributes:
        name: The parameter.
        text: What is wrong.
    """

    name: str
    text: str


def bad_weights(model: torch.nn.Module) -> dict[str, int]:
    """Parameters and buffers that are not finite, and how many of their elements."""
    found = {}
    for name, each in [*model.named_parameters(), *model.named_buffers()]:
        if each.is_floating_point() and each.numel() and not math.isfinite(extent_of(each)):
            found[name] = int((~torch.isfinite(each)).sum())
    return found


def compare(model: torch.nn.Module, state: Mapping[str, Any]) -> Moved:
    """How far weights that are finite are from those of a backup."""
    changed = whole = 0.0
    alone, lead = Moved(0.0), ALONE
    shares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if name not in state or not parameter.is_floating_point():
            continue
        then = state[name].to(parameter.device)
        moved = (parameter.detach().double() - then.double()).abs().reshape(-1)
        if not moved.numel():
            continue
        change, length = float(moved.square().sum()), float(then.double().square().sum())
        changed, whole = changed + change, whole + length
        shares[name] = math.sqrt(change / length) if length > 0 else math.inf if change > 0 else 0.0
        top = torch.topk(moved, min(2, moved.numel()))
        first = float(top.values[0])
        second = float(top.values[1]) if moved.numel() > 1 else 0.0
        ratio = first / max(second, 1e-3 * float(then.abs().max()), 1e-12)
        if ratio > lead:
            lead, index = ratio, int(top.indices[0])
            now, before = float(parameter.detach().reshape(-1)[index]), float(then.reshape(-1)[index])
            alone = Moved(0.0, name, index, now, before)
    share = math.sqrt(changed / whole) if whole > 0 else math.inf
    many = sum(each > MOVED for each in shares.values()) / max(1, len(shares))
    farthest = max(shares, key=shares.__getitem__, default="")
    return alone._replace(share=share, many=many, farthest=farthest, farthest_share=shares.get(farthest, 0.0))


def optimizer_faults(optimizer: Any, names: Mapping[int, str], backup: Any, updates: int) -> list[OptimizerFault]:
    """Parts of the state of an optimizer that gradients cannot have made.

    Adam's averages obey bounds: ``m**2 <= c * v`` with a number that follows from its betas, ``v`` falls no faster than
    by ``beta2`` each update, and none of its squares is negative.

    Args:
        optimizer: The optimizer.
        names: Names of parameters by their id.
        backup: The state of the optimizer in a backup, or None.
        updates: Most updates since then.
    """
    found = []
    before = _states_of(backup)
    number = -1
    for group in getattr(optimizer, "param_groups", ()):
        for parameter in group["params"]:
            number += 1
            state = optimizer.state.get(parameter, {})
            name = names.get(id(parameter), f"parameter {number}")
            fault = _fault_of(state, before.get(number, {}), group, updates)
            if fault:
                found.append(OptimizerFault(name, fault))
    return found


def _states_of(backup: Any) -> dict[Any, Any]:
    state = backup.get("state") if isinstance(backup, Mapping) else None
    return dict(state) if isinstance(state, Mapping) else {}


def _fault_of(state: Mapping[str, Any], before: Mapping[str, Any], group: Mapping[str, Any], updates: int) -> str:
    for key, value in state.items():
        if _is_floats(value) and not math.isfinite(extent_of(value)):
            count = int((~torch.isfinite(value)).sum())
            return f"{key} holds {count:,} of {value.numel():,} values that are not finite"
    squares: Any = state.get("exp_avg_sq")
    mean: Any = state.get("exp_avg")
    if _is_floats(squares) and _is_floats(mean) and squares.shape == mean.shape and "betas" in group:
        return _fault_of_adam(squares, mean, before.get("exp_avg_sq"), group["betas"], updates)
    momentum: Any = state.get("momentum_buffer")
    old: Any = before.get("momentum_buffer")
    if _is_floats(momentum) and _is_floats(old) and momentum.shape == old.shape:
        sizes = momentum.abs().reshape(-1)
        top = torch.topk(sizes, min(2, sizes.numel())).values.tolist()
        if len(top) == 2 and top[0] > 1e4 * max(top[1], float(old.abs().max())):
            return f"momentum_buffer holds {top[0]:.3g}, where all others are at most {top[1]:.3g}"
    return ""


def _fault_of_adam(squares: torch.Tensor, mean: torch.Tensor, old: Any, betas: Any, updates: int) -> str:
    slow, fast = (float(each) for each in betas)
    if bool((squares < 0).any()):
        return f"exp_avg_sq holds {float(squares.min()):.3g}, and no square is negative"
    spread, ratio = (1 - fast) * (1 - slow**2 / fast), (1 - slow) ** 2
    if 0 < slow**2 < fast < 1:
        least = torch.finfo(squares.dtype).tiny / torch.finfo(squares.dtype).eps
        beyond = mean.double().square() > BEYOND * ratio / spread * squares.double() + least
        if bool(beyond.any()):
            at = int(beyond.reshape(-1).nonzero()[0])
            m, v = float(mean.reshape(-1)[at]), float(squares.reshape(-1)[at])
            return f"exp_avg holds {m:.3g} where exp_avg_sq holds {v:.3g}, which no gradients give"
    if _is_floats(old) and old.shape == squares.shape and updates > 0:
        left = DECAYED * fast**updates
        fallen = squares.double() < left * old.to(squares.device).double() - 1e-30
        count = int(fallen.sum())
        if count > max(1, 0.01 * squares.numel()) and left > 1e-3:
            return f"exp_avg_sq has fallen by more than its decay allows, in {count:,} of {squares.numel():,} elements"
    return ""


def _is_floats(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 0
