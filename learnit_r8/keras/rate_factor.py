"""The factor of recovery on the rates of Keras optimizers, which are the user's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from .live_values import LiveValues
from .state import as_numpy, rate_of

NOT_SCALED = (
    "the learning rate of an optimizer is {!r} on JAX, which is compiled into the step: recovery cannot lower it "
    "there, and only puts weights back."
)


class RateFactor:
    """Lowers the rates of optimizers for the length of a step, where recovery asks for it.

    A rate that is a variable is set before the step and put back after it, so that whatever sets it never reads it. A
    schedule in the optimizer is multiplied by a variable, which is 1 as long as all is well.

    Args:
        optimizers: Keras optimizers.
        live: Sets the variables of the first one, wherever they are.

    Attributes:
        unscaled: The rate that cannot be lowered; None if all can.
    """

    def __init__(self, optimizers: list[Any], live: LiveValues) -> None:
        self._live = live
        self._rates: list[Any] = []
        self._saved: list[Any] = []
        self.unscaled: Any = None
        self._factor: Any = None
        for optimizer in optimizers:
            rate = rate_of(optimizer)
            if isinstance(rate, keras.Variable):
                self._rates.append(rate)
            elif keras.backend.backend() == "jax":
                self.unscaled = rate
            else:
                self._wrap(getattr(optimizer, "inner_optimizer", optimizer))

    def _wrap(self, optimizer: Any) -> None:
        current = optimizer._get_current_learning_rate
        if hasattr(current, "r8_factor"):
            self._factor = current.r8_factor
            return
        if self._factor is None:
            self._factor = keras.Variable(1.0, dtype="float32", trainable=False, name="r8_factor")
        factor = self._factor

        def scaled() -> Any:
            return current() * factor

        scaled.r8_factor = factor  # type: ignore[attr-defined]
        optimizer._get_current_learning_rate = scaled

    @property
    def value(self) -> float:
        """The user's rate now: that of the first optimizer whose rate is a variable; NaN without."""
        return float(self._live.read(self._rates[0])) if self._rates else float("nan")

    def put_on(self, factor: float) -> None:
        """Lower the rates for the steps that follow."""
        if self._factor is not None and float(as_numpy(self._factor)) != factor:
            self._factor.assign(factor)
        if factor == 1:
            return
        self._saved = [np.array(self._live.read(each)) for each in self._rates]
        for rate, value in zip(self._rates, self._saved, strict=True):
            self._live.set(rate, float(value) * factor)

    def take_back(self) -> None:
        """Put the rates back as they were."""
        saved, self._saved = self._saved, []
        for rate, value in zip(self._rates, saved, strict=False):
            self._live.set(rate, float(value))
