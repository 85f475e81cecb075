"""What is wrong in weights and in an optimizer's state, on their own and beside a backup."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from .watch import extent_of

ALONE = 100.0
"""How many times as far as any other of its array an element has moved that has changed alone."""

MOVED = 0.1
"""Share of its length from which an array counts as moved."""

DECAYED = 0.5
"""Share of what is left of Adam's squares, if no gradient came at all, below which something else has changed them."""

SLACK = 2.0
"""Factor of the farthest that updates can move a weight, as the rate was not the same in all of them."""

BEYOND = 4.0
"""Factor of the bound of Adam's averages beyond which they are not averages of gradients; low precision needs some."""


class Alone(NamedTuple):
    """Weights that have changed while all others have not, or hardly.

    Attributes:
        name: Their parameter.
        what: The same, with their place.
        change: What has happened to them.
        where: A mask of them.
        is_within_reach: Whether updates can have moved them so far; None where that is not known.
    """

    name: str
    what: str
    change: str
    where: torch.Tensor
    is_within_reach: bool | None


class Moved(NamedTuple):
    """How far weights are from those of a backup.

    Attributes:
        share: Length of the change, as a share of the length of the weights.
        many: Share of the arrays that have moved by a tenth of their length.
        farthest, farthest_share: The array that has moved farthest, as a share of its length.
        alone: An element that has moved alone, or the elements of the only array that holds some that have moved
            farther than updates can; None without.
    """

    share: float
    many: float = 0.0
    farthest: str = ""
    farthest_share: float = 0.0
    alone: Alone | None = None


def is_sound(values: torch.Tensor, *, is_buffer: bool) -> bool:
    """Whether all values are finite, or in a buffer minus infinity, as in the mask of attention."""
    if not values.is_floating_point() or not values.numel() or math.isfinite(extent_of(values)):
        return True
    return is_buffer and bool((values.isfinite() | (values == -math.inf)).all())


def bad_weights(model: torch.nn.Module) -> dict[str, int]:
    """Parameters and buffers that are not finite, and how many of their elements."""
    found = {}
    for given, is_buffer in ((model.named_parameters(), False), (model.named_buffers(), True)):
        for name, each in given:
            if not is_sound(each, is_buffer=is_buffer):
                found[name] = int((~torch.isfinite(each)).sum())
    return found


def compare(model: torch.nn.Module, optimizer: Any, backup: Mapping[str, Any], updates: int) -> Moved:
    """How far weights that are finite are from those of a backup.

    Args:
        model: The model.
        optimizer: Its optimizer.
        backup: The states of both in the backup.
        updates: Most updates since then.
    """
    state = backup["model"]
    changed = whole = 0.0
    lone: Alone | None = None
    lead, beyond = ALONE, []
    shares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if name not in state or not parameter.is_floating_point() or not parameter.numel():
            continue
        now, then = parameter.detach(), state[name].to(parameter.device)
        moved = (now.double() - then.double()).abs()
        limit = _reach(optimizer, parameter, then, backup.get("optimizer"), updates)
        change, length = float(moved.square().sum()), float(then.double().square().sum())
        changed, whole = changed + change, whole + length
        shares[name] = math.sqrt(change / length) if length > 0 else math.inf if change > 0 else 0.0
        top = [*torch.topk(moved.reshape(-1), min(2, moved.numel())).values.tolist(), 0.0]
        ratio = top[0] / max(top[1], 1e-3 * float(then.abs().max()), 1e-12)
        if ratio > lead:
            lead, lone = ratio, _alone(name, now, then, moved == top[0], limit)
        if top[0] > limit:
            beyond.append((name, now, then, moved > limit, limit))
    share = math.sqrt(changed / whole) if whole > 0 else math.inf
    many = sum(each > MOVED for each in shares.values()) / max(1, len(shares))
    farthest = max(shares, key=shares.__getitem__, default="")
    lone = _alone(*beyond[0]) if lone is None and len(beyond) == 1 else lone
    return Moved(share, many, farthest, shares.get(farthest, 0.0), lone)


def _alone(name: str, now: torch.Tensor, then: torch.Tensor, where: torch.Tensor, limit: float) -> Alone:
    count, moved = int(where.sum()), float((now[where].double() - then[where].double()).abs().max())
    is_within_reach = None if limit == math.inf else moved <= limit
    if count > 1:
        change = f"have moved by up to {moved:.3g}, and updates can by {limit:.3g}"
        return Alone(name, f"{count:,} of the {now.numel():,} weights `{name}`", change, where, is_within_reach)
    place = f" at {where.nonzero()[0].tolist()}" if now.ndim else ""
    change = f"is {now[where].item():.4g}, and was {then[where].item():.4g}"
    return Alone(name, f"`{name}`{place}", change, where, is_within_reach)


def farthest_buffer(model: torch.nn.Module, state: Mapping[str, Any]) -> tuple[str, float]:
    """The buffer of a model that is farthest from that of a backup, as a share of its length; "" if none has moved."""
    shares = {}
    for name, each in model.named_buffers():
        if name in state and each.is_floating_point():
            then = state[name].to(each.device).double()
            share = float((each.double() - then).norm() / then.norm().clamp_min(1e-12))
            # What is not finite was damaged by what is.
            shares[name] = share if math.isfinite(share) else 1e-9
    name = max(shares, key=shares.__getitem__, default="")
    return (name, shares[name]) if name and shares[name] > 0 else ("", 0.0)


def _reach(optimizer: Any, parameter: torch.Tensor, then: torch.Tensor, backup: Any, updates: int) -> float:
    """Farthest that updates can have moved an element; infinite for optimizers other than Adam and its like.

    Args:
        optimizer: The optimizer.
        parameter, then: The parameter, and what it was in a backup.
        backup: The state of the optimizer in a backup, or None.
        updates: Most updates since then.
    """
    earlier = backup.get("param_groups", ()) if isinstance(backup, Mapping) else ()
    for number, group in enumerate(getattr(optimizer, "param_groups", ())):
        if not any(each is parameter for each in group["params"]):
            continue
        state = optimizer.state.get(parameter, {})
        if "betas" not in group or not _is_floats(state.get("exp_avg_sq")):
            return math.inf
        slow, fast = (float(each) for each in group["betas"])
        rate = max(float(each["lr"]) for each in (group, *earlier[number : number + 1]))
        if not 0 <= slow**2 < fast < 1:
            return math.inf
        # What the bound of Adam's averages allows, and the decay of the largest weight.
        largest = math.sqrt((1 - slow) ** 2 / ((1 - fast) * (1 - slow**2 / fast)))
        decay = float(group.get("weight_decay", 0.0)) * extent_of(then)
        return SLACK * updates * rate * (max(1.0, largest) + decay)
    return math.inf


@contextlib.contextmanager
def as_before(parameter: torch.Tensor, then: torch.Tensor, where: torch.Tensor) -> Iterator[None]:
    """A ``with`` block in which the elements of a parameter for which a mask holds are as in a backup."""
    now = parameter.detach().clone()
    try:
        parameter.data[where] = then.to(parameter.device)[where]
        yield
    finally:
        parameter.data.copy_(now)


def optimizer_faults(model: torch.nn.Module, optimizer: Any, backup: Any = None, updates: int = 0) -> dict[str, str]:
    """What is wrong in parts of the state of an optimizer that gradients cannot have made, by their parameters.

    Adam's averages obey bounds: ``m**2 <= c * v`` with a number that follows from its betas, ``v`` falls no faster than
    by ``beta2`` each update, and none of its squares is negative.

    Args:
        model: Names the parameters.
        optimizer: The optimizer.
        backup: The state of the optimizer in a backup, or None.
        updates: Most updates since then.
    """
    found = {}
    names = {id(each): name for name, each in model.named_parameters()}
    held = backup.get("state") if isinstance(backup, Mapping) else None
    before = dict(held) if isinstance(held, Mapping) else {}
    number = -1
    for group in getattr(optimizer, "param_groups", ()):
        for parameter in group["params"]:
            number += 1
            state = optimizer.state.get(parameter, {})
            fault = _fault_of(state, before.get(number, {}), group, updates)
            if fault:
                found[names.get(id(parameter), f"parameter {number}")] = fault
    return found


def vanished_eps(model: torch.nn.Module, optimizer: Any, bad: Collection[str]) -> str:
    """What an optimizer's eps is in the type of its parameters, if that is 0, so that updates divide by 0; "" if not.

    Args:
        model: Names the parameters.
        optimizer: The optimizer.
        bad: Names of those that are not finite.
    """
    named = [(name, each) for name, each in model.named_parameters() if name in bad]
    for group in getattr(optimizer, "param_groups", ()):
        eps = group.get("eps")
        # What is fused computes in float32.
        if not isinstance(eps, float) or not eps > 0 or group.get("fused"):
            continue
        for name, each in named:
            squares = optimizer.state.get(each, {}).get("exp_avg_sq", each)
            is_own = any(each is parameter for parameter in group["params"])
            if is_own and float(torch.tensor(eps, dtype=squares.dtype)) == 0:
                kind = str(squares.dtype).removeprefix("torch.")
                least = 2 * torch.finfo(squares.dtype).smallest_normal
                return (
                    f"eps {eps:g} is 0 in {kind}, the type that {type(optimizer).__name__} computes with for `{name}`, "
                    "so its update divides by 0 where squares of gradients are 0 in it, too: give "
                    f"eps={least:.1e} or more, or train float32 weights under torch.autocast"
                )
    return ""


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
