"""Rates: the learning rates of an optimizer's parameter groups, which keep their ratios."""

from __future__ import annotations

import math
from typing import Any

import torch

FOREIGN = (
    "the optimizer's learning rate was changed by something else than R8Scheduler, which sets it at each step: take "
    "that other scheduler out (or give its curve as scheduler_mode), or pass sets_lr=False to attach()."
)


class GroupRates:
    """Sets the learning rates of all groups of an optimizer.

    Args:
        optimizer: The ratios of its groups' rates are kept: each is multiplied by its share of the highest.

    Attributes:
        has_grown: Whether groups were added; who has heard of it sets it back.

    Raises:
        ValueError: no group has a rate > 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        # As torch's own schedulers do: who comes later measures the same ratios.
        initial = [group.setdefault("initial_lr", _plain(group["lr"])) for group in optimizer.param_groups]
        initial = [_plain(rate) for rate in initial]
        self.highest = max(initial, default=0.0)
        if not self.highest > 0:
            raise ValueError(f"optimizer must have a group with a learning rate > 0, got {initial!r}.")
        self._shares = [rate / self.highest for rate in initial]
        self.has_grown = False
        self._set: list[float] | None = None
        self._lr = math.nan

    def set(self, lr: float) -> bool:
        """Set the rates; the highest group's becomes ``lr``.

        Returns:
            Whether somebody else had changed one since the last time.
        """
        groups, shares = self._optimizer.param_groups, self._shares
        if lr == self._lr and [group["lr"] for group in groups] == self._set:
            # Asked twice a step; nothing has changed.
            return False
        # A group that was added later has no share yet: it is taken to be like the highest.
        if len(groups) > len(shares):
            shares += [1.0] * (len(groups) - len(shares))
            self.has_grown = True
        foreign = self._set is not None and self._is_changed(groups, self._set)
        self._set = [lr * share for share in shares]
        self._lr = lr
        for group, rate in zip(groups, self._set, strict=True):
            # A tensor, as compiled and captured optimizers have, stays that tensor.
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
                self._lr = math.nan
            else:
                group["lr"] = rate
        return foreign

    @staticmethod
    def _is_changed(groups: list[dict[str, Any]], last: list[float]) -> bool:
        # A tensor is not looked at: it may be on a device, which would have to be waited for.
        rates = [group["lr"] for group in groups[: len(last)]]
        return any(type(now) is float and now != then for now, then in zip(rates, last, strict=True))

    def forget(self) -> None:
        """Whatever the rates are at the next `set` is nobody's doing: the optimizer was put back."""
        self._set, self._lr = None, math.nan


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rate of each parameter group."""
    return [_plain(group["lr"]) for group in optimizer.param_groups]


def _plain(rate: Any) -> float:
    return float(rate)
