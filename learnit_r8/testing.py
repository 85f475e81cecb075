"""For tests of your own training: faults on purpose, a toy task, a clock turned by hand, and a list of what happened.

Nothing here is needed to train. See ``docs/recovery.md`` for a rehearsal of a run that goes wrong.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .callbacks import call_load, call_save, check_callback
from .checks import is_number, whole_number
from .events import Event

_E = TypeVar("_E", bound=Event)


class FakeClock:
    """Seconds that pass only when told to; for the argument ``clock`` of `R8Scheduler`.

    >>> clock = FakeClock()
    >>> clock.advance(1.5)
    >>> clock()
    1.5
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass.

        Raises:
            ValueError: they are negative; clocks of this kind never go back.
        """
        if not (is_number(seconds) and 0 <= seconds < math.inf):
            raise ValueError(f"seconds must be a finite number >= 0, got {seconds!r}.")
        self.now += seconds


class RecordedEvents(list[Event]):
    """The events of a run in order; a listener."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, *kinds: type[_E]) -> list[_E]:
        """Those of some kinds."""
        return [event for event in self if isinstance(event, kinds)]


def record_events() -> RecordedEvents:
    """A list that fills itself with what happens, for the argument ``listeners``.

    >>> from learnit_r8 import R8Scheduler, events
    >>> heard = record_events()
    >>> r8 = R8Scheduler(8, batch_size=4, num_epochs=1, listeners=[heard])
    >>> outcome = r8.report(r8.draw(), 1.0)
    >>> [event.loss for event in heard.of(events.StepDone)]
    [1.0]
    """
    return RecordedEvents()


class ToyTask:
    """A small classification task with a network to learn it, in numpy: three steps of it take a millisecond.

    Gaussian clouds in 20 dimensions, 10 classes; one hidden layer of 32, stochastic gradient descent with momentum
    0.9. A learning rate of 0.05 is fine; 5 and more make it diverge as real networks do.

    Args:
        num_samples: N, >= 1.
        seed: >= 0, for data and weights.

    Raises:
        ValueError: an argument outside its range.

    Attributes:
        weights: The model, four float64 arrays.
        velocity: The optimizer's state, likewise.
    """

    def __init__(self, num_samples: int = 2048, seed: int = 0) -> None:
        num_samples = whole_number("num_samples", num_samples, least=1)
        rng = np.random.default_rng(whole_number("seed", seed, least=0))
        centres = rng.normal(0, 1.0, (10, 20))
        self.labels: NDArray[np.int64] = rng.integers(0, 10, num_samples)
        self.inputs: NDArray[np.float64] = centres[self.labels] + rng.normal(0, 1.0, (num_samples, 20))
        self.weights = [rng.normal(0, 0.3, (20, 32)), np.zeros(32), rng.normal(0, 0.2, (32, 10)), np.zeros(10)]
        self.velocity = [np.zeros_like(weight) for weight in self.weights]
        self._gradients = self.velocity

    def losses(self, indices: Any) -> NDArray[np.float64]:
        """float64[B], the cross entropy of some samples; `step` goes along the gradient of its mean."""
        w1, b1, w2, b2 = self.weights
        x, y, rows = self.inputs[indices], self.labels[indices], np.arange(len(indices))
        with np.errstate(all="ignore"):
            hidden = np.maximum(x @ w1 + b1, 0)
            logits = hidden @ w2 + b2
            logits -= logits.max(axis=1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            error = np.exp(log_p)
            error[rows, y] -= 1
            error /= len(indices)
            back = (error @ w2.T) * (hidden > 0)
            self._gradients = [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        losses: NDArray[np.float64] = -log_p[rows, y]
        return losses

    def step(self, lr: float, scale: float = 1.0) -> None:
        """One step of the optimizer, on the gradient times ``scale``."""
        with np.errstate(all="ignore"):
            for weight, velocity, gradient in zip(self.weights, self.velocity, self._gradients, strict=True):
                velocity *= 0.9
                velocity += gradient * scale
                weight -= lr * velocity

    def loss(self) -> float:
        """Mean loss of all samples; changes nothing."""
        before = self._gradients
        mean = float(self.losses(np.arange(len(self.labels))).mean())
        self._gradients = before
        return mean

    def state(self) -> dict[str, list[NDArray[np.float64]]]:
        """The model and the optimizer, for the argument ``state_callback``: the live arrays, no copies."""
        return {"weights": self.weights, "velocity": self.velocity}

    def load(self, source: Any, from_ram: bool = False) -> None:
        """Put back what `state` returned, or what `save` wrote; for the argument ``load_callback``."""
        if not from_ram:
            with np.load(source, allow_pickle=False) as file:
                source = {name: [file[f"{name}{number}"] for number in range(4)] for name in ("weights", "velocity")}
        self.weights, self.velocity = list(source["weights"]), list(source["velocity"])

    def save(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        """Write the model to a file; for the argument ``save_callback``."""
        arrays = {f"{name}{n}": array for name, many in self.state().items() for n, array in enumerate(many)}
        with open(filepath, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


class FaultPlan:
    """Faults on purpose at given steps, to see what a run makes of them.

    Pass losses through `loss`, learning rates through `rate`, and the callbacks through `callbacks`. Every fault
    happens once: a step that comes again, in a resumed run for instance, goes well if it is the same plan.

    Args:
        nan: Steps whose loss is NaN.
        inf: Steps whose loss is infinite.
        spike: Steps whose loss is ``spike_by`` times as high.
        spike_by: See ``spike``; finite.
        drift: Steps at each of which all later losses become ``drift_by`` times as high: a range makes a slow rise.
        drift_by: See ``drift``; finite.
        lr: Steps whose learning rate is ``lr_by`` times as high.
        lr_by: See ``lr``; finite.
        state: The first call of the state callback at or after each of these steps raises.
        load: Likewise of the load callback, before it has done anything.
        save: Likewise of the save callback, after it has written a part of its file.
        disk: Likewise, with the error of a full disk.

    Raises:
        TypeError: something that is no list of steps.
        ValueError: a step below 0, or a factor that is not finite.

    Attributes:
        struck: What happened so far: (step, name of the argument).

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
        """The loss as it shall be: what a step with a fault makes of it, else the loss itself.

        Args:
            step: ``r8.global_step``, before the loss is reported.
            loss: A number, or an array or tensor: it is multiplied, so that gradients suffer as the loss does.
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
        """The learning rate as it shall be; see `loss`."""
        self._step = step
        return lr * self._by["lr"] if self._strikes("lr", step) else lr

    def callbacks(
        self,
        *,
        state: Callable[[], Any] | None = None,
        load: Callable[..., Any] | None = None,
        save: Callable[..., Any] | None = None,
    ) -> dict[str, Callable[..., Any]]:
        """The callbacks with their faults, as keyword arguments of `R8Scheduler`; those that are None are left out.

        Raises:
            TypeError: one is not callable.
            ValueError: a fault of a callback that is not given.
        """
        own = {"state": state, "load": load, "save": save}
        for name, callback in own.items():
            check_callback(f"{name}_callback", callback)
        for name in ("state", "load", "save", "disk"):
            if self._left[name] and own["save" if name == "disk" else name] is None:
                raise ValueError(f"{name} must be empty without that callback, got {sorted(self._left[name])}.")
        wrapped = {"state": self._state, "load": self._load, "save": self._save}
        return {f"{name}_callback": wrapped[name](callback) for name, callback in own.items() if callback is not None}

    def _state(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        def state_callback() -> Any:
            self._fail_if_due("state")
            return callback()

        return state_callback

    def _load(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        def load_callback(source: Any, from_ram: bool) -> None:
            self._fail_if_due("load")
            call_load(callback, source, from_ram=from_ram)

        return load_callback

    def _save(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        def save_callback(state_dict: dict[str, Any], filepath: str) -> None:
            call_save(callback, state_dict, filepath)
            if self._is_due("disk"):
                os.truncate(filepath, os.path.getsize(filepath) // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filepath)
            self._fail_if_due("save")

        return save_callback

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
