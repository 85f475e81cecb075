"""Planned faults, to rehearse an incident."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .._validation import is_number, whole_number
from ..state.callbacks import call_load, call_save, check_callback


class FaultPlan:
    """Faults at given steps, to test how a run reacts.

    Pass losses through `loss`, learning rates through `rate`, and the callbacks through `callbacks`. Every fault
    happens once in the life of a plan: a repeated step, as in a resumed run, has no fault.

    Args:
        nan: Steps whose loss is NaN.
        inf: Steps whose loss is infinite.
        spike: Steps whose loss is ``spike_by`` times as high.
        spike_by: Factor of ``spike``, finite.
        drift: Steps at each of which all later losses become ``drift_by`` times as high: a range makes a slow rise.
        drift_by: Factor of ``drift``, finite.
        lr: Steps whose learning rate is ``lr_by`` times as high.
        lr_by: Factor of ``lr``, finite.
        state: The first call of the state callback at or after each of these steps raises.
        load: The first call of the load callback at or after each of these steps raises, before it loads anything.
        save: The first call of the save callback at or after each of these steps raises, after writing its file.
        disk: As ``save``, with half of the file and the error of a full disk.

    Raises:
        TypeError: an argument is not a list of steps.
        ValueError: a step is negative, or a factor is not finite.

    Attributes:
        struck: The faults so far: (step, name of the argument).

    >>> faults = FaultPlan(nan=[1], spike=[2], spike_by=10.0)
    >>> [faults.loss(step, 0.5) for step in range(4)]
    [0.5, nan, 5.0, 0.5]
    >>> faults.struck
    [(1, 'nan'), (2, 'spike')]
    """

    def __init__(
        self,
        *,
        nan: Iterable[int] = (),
        inf: Iterable[int] = (),
        spike: Iterable[int] = (),
        spike_by: float = 1e4,
        drift: Iterable[int] = (),
        drift_by: float = 1.01,
        lr: Iterable[int] = (),
        lr_by: float = 1e3,
        state: Iterable[int] = (),
        load: Iterable[int] = (),
        save: Iterable[int] = (),
        disk: Iterable[int] = (),
    ) -> None:
        given = {
            "nan": nan, "inf": inf, "spike": spike, "drift": drift, "lr": lr,
            "state": state, "load": load, "save": save, "disk": disk,
        }  # fmt: skip
        self._left = {name: _steps(name, steps) for name, steps in given.items()}
        for name, factor in (("spike_by", spike_by), ("drift_by", drift_by), ("lr_by", lr_by)):
            if not (is_number(factor) and math.isfinite(factor)):
                raise ValueError(f"{name} must be a finite number, got {factor!r}.")
        self._by = {"nan": math.nan, "inf": math.inf, "spike": spike_by, "drift": drift_by, "lr": lr_by}
        self._drifted = 1.0
        self._step = 0
        self.struck: list[tuple[int, str]] = []

    def loss(self, step: int, loss: Any) -> Any:
        """The loss with the faults of this step, else unchanged.

        Args:
            step: ``r8.global_step``, before the loss is reported.
            loss: A number, array or tensor; faults multiply it, so that gradients change with it.
        """
        self._step = step
        if self._strikes("drift", step):
            self._drifted *= self._by["drift"]
        factor = self._drifted
        for name in ("nan", "inf", "spike"):
            if self._strikes(name, step):
                factor *= self._by[name]
        return loss if factor == 1.0 else loss * factor

    def rate(self, step: int, lr: float) -> float:
        """The learning rate with the fault of this step, else unchanged; see `loss`."""
        self._step = step
        return lr * self._by["lr"] if self._strikes("lr", step) else lr

    def callbacks(
        self,
        *,
        state: Callable[[], Any] | None = None,
        load: Callable[..., Any] | None = None,
        save: Callable[..., Any] | None = None,
    ) -> dict[str, Callable[..., Any]]:
        """The callbacks with their faults, as keyword arguments of `R8Scheduler`; None is left out.

        Raises:
            TypeError: a callback is not callable.
            ValueError: the plan has a fault for a callback that is None.
        """
        own = {"state": state, "load": load, "save": save}
        for name, callback in own.items():
            check_callback(f"{name}_callback", callback)
        for name in ("state", "load", "save", "disk"):
            if self._left[name] and own["save" if name == "disk" else name] is None:
                raise ValueError(f"{name} must be empty without that callback, got {sorted(self._left[name])}.")
        wrapped: dict[str, Callable[..., Any]] = {"state": self._state, "load": self._load, "save": self._save}
        given = {name: callback for name, callback in own.items() if callback is not None}
        return {f"{name}_callback": partial(wrapped[name], callback) for name, callback in given.items()}

    def _state(self, callback: Callable[..., Any]) -> Any:
        self._fail_if_due("state")
        return callback()

    def _load(self, callback: Callable[..., Any], source: Any, from_ram: bool, is_resume: bool) -> None:
        self._fail_if_due("load")
        call_load(callback, source, from_ram=from_ram, is_resume=is_resume)

    def _save(self, callback: Callable[..., Any], state_dict: dict[str, Any], filepath: str) -> None:
        call_save(callback, state_dict, filepath)
        if self._is_due("disk"):
            os.truncate(filepath, os.path.getsize(filepath) // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filepath)
        self._fail_if_due("save")

    def _fail_if_due(self, name: str) -> None:
        if self._is_due(name):
            raise RuntimeError(f"{name}_callback fails on purpose after step {self._step}")

    def _is_due(self, name: str) -> bool:
        due = [step for step in self._left[name] if step <= self._step]
        return bool(due) and self._strikes(name, min(due))

    def _strikes(self, name: str, step: int) -> bool:
        if step not in self._left[name]:
            return False
        self._left[name].remove(step)
        self.struck.append((step, name))
        return True


def _steps(name: str, steps: Iterable[int]) -> set[int]:
    if not isinstance(steps, Iterable) or isinstance(steps, (str, bytes)):
        raise TypeError(f"{name} must be a list of steps, got {steps!r}.")
    return {whole_number(name, step, least=0) for step in steps}
