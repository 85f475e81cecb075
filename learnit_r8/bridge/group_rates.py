"""The learning rates of the parameter groups of a torch optimizer, which keep their ratios."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

FOREIGN = (
    "the optimizer's learning rate was changed by something other than R8Scheduler, which sets it at each step: take "
    "out the other scheduler (or give its curve as scheduler_mode), or pass scheduler_mode='keep' to attach()."
)


class _Last:
    """The rates that an optimizer was given last.

    Args:
        own: The highest rate that whoever made it gave it.
        rates: Those that it has; None if it was put back since.
    """

    def __init__(self, own: float, rates: list[float]) -> None:
        self.own = own
        self.rates: list[float] | None = rates

    def has(self, now: list[float]) -> bool:
        """Whether nobody else has set these rates, float[G]; some groups may be new."""
        if self.rates is None:
            return True
        # A rate may be a tensor of float32.
        return len(now) >= len(self.rates) and all(map(is_close, now, self.rates))


_LAST: WeakKeyDictionary[Any, _Last] = WeakKeyDictionary()
"""By optimizer, as whoever attaches to one again must know that its rates are those that a schedule has come to."""


class GroupRates:
    """Sets the learning rates of all groups of an optimizer.

    Args:
        optimizer: A `torch.optim.Optimizer`. Each of its groups gets its share of the highest rate.
        own: The highest rate that whoever made it gave it; by default that of now, unless R8 has set that.

    Attributes:
        highest: The highest rate that a group had at first.
    """

    def __init__(self, optimizer: Any, own: float | None = None) -> None:
        self._optimizer = optimizer
        now = rates_of(optimizer)
        own = own_rate_of(optimizer) if own is None else own
        # As torch's own schedulers do, so that a second one measures the same ratios.
        initial = [float(group.setdefault("initial_lr", float(group["lr"]))) for group in optimizer.param_groups]
        self.highest = max(initial, default=0.0)
        self._shares = [rate / self.highest if self.highest > 0 else 1.0 for rate in initial]
        self._last = _LAST[plain_optimizer(optimizer)] = _Last(own, now)
        self._set: list[float] | None = None
        self._lr = math.nan

    def set(self, lr: float) -> bool:
        """Set the rates; the highest group's becomes ``lr``.

        Returns:
            Whether other code has changed one since the last call.
        """
        groups, shares = self._optimizer.param_groups, self._shares
        held = list(map(itemgetter("lr"), groups))
        # Its rate is NaN where one may be a tensor, which would have to be waited for.
        is_untouched = self._lr == self._lr and held == self._set
        if is_untouched and lr == self._lr:
            # Called twice a step.
            return False
        # A group that was added later has no share yet: it gets the highest rate.
        if len(groups) > len(shares):
            shares += [1.0] * (len(groups) - len(shares))
        foreign = not is_untouched and any(
            # A tensor on a device is not read, as that would wait for the device.
            now != then if type(now) is float else getattr(now, "is_cpu", False) and not is_close(float(now), then)
            for now, then in zip(held, self._set or (), strict=False)
        )
        rates: list[float] = []
        self._set, self._last.rates, self._lr = rates, rates, lr
        for group, share in zip(groups, shares, strict=True):
            rate = lr * share
            rates.append(rate)
            if put_rate(group, rate):
                self._lr = math.nan
        return foreign

    def expect_any(self) -> None:
        """Expect no particular rates at the next `set`; the optimizer was put back."""
        self._set = self._last.rates = None
        self._lr = math.nan


def plain_optimizer(optimizer: Any) -> Any:
    """The optimizer itself; what accelerate wraps around it has no hooks, and clears no gradients that are added up."""
    return getattr(optimizer, "optimizer", optimizer)


def is_set_by_r8(optimizer: Any) -> bool:
    """Whether a `GroupRates` has set the present rates of an optimizer."""
    last = _LAST.get(plain_optimizer(optimizer))
    return last is not None and last.has(rates_of(optimizer))


def own_rate_of(optimizer: Any) -> float:
    """The highest rate that whoever made the optimizer gave it: that of now, unless a `GroupRates` has set it."""
    return _LAST[plain_optimizer(optimizer)].own if is_set_by_r8(optimizer) else max(rates_of(optimizer), default=0.0)


def rates_of(optimizer: Any) -> list[float]:
    """The rate of each parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def put_rate(group: dict[str, Any], rate: Any) -> bool:
    """Set the rate of a parameter group; whether it is a tensor, as compiled optimizers have, which stays one."""
    is_tensor = hasattr(group["lr"], "fill_")
    if is_tensor:
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
    return is_tensor


def is_close(one: float, other: float) -> bool:
    """Whether two rates are the same but for rounding."""
    return math.isclose(one, other, rel_tol=1e-6)
