"""The values of variables while ``fit`` runs.

On JAX the trainer keeps them in lists of its own from the first step of an epoch to its last. Syncing the whole model
at each step, to read one variable, would cost more than a small step.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from .state import as_numpy


class LiveValues:
    """Reads and sets metrics and optimizer variables of a model, wherever they are now.

    Args:
        model: A compiled Keras model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._is_jax = keras.backend.backend() == "jax"
        self._places: dict[int, tuple[str, int]] = {}
        self._lengths: tuple[int, ...] = ()

    def read(self, variable: Any) -> NDArray[Any]:
        """The value, where it can be seen without a copy."""
        values, position = self._place_of(variable)
        return as_numpy(variable) if values is None else np.asarray(values[position])

    def set(self, variable: Any, number: float) -> None:
        """Set a variable that is one number."""
        # The lists that the trainer shows are copies of those that its next step is given.
        self.sync()
        own = variable.value
        if type(own).__name__ == "ResourceVariable":
            import tensorflow as tf

            # Past all conversions: a third of the time of TensorFlow's own `assign`.
            tf.raw_ops.AssignVariableOp(resource=own.handle, value=tf.constant(number, own.dtype))
        else:
            variable.assign(number)

    def sync(self) -> None:
        """Bring all values back to the variables; they are set there until the next step begins."""
        if self._is_jax:
            self._model.jax_state_sync()

    def search_again(self) -> None:
        """Look for all variables again; the model may have been compiled again."""
        self._lengths = ()

    def _place_of(self, variable: Any) -> tuple[Any, int]:
        """The list that holds the value, and where; None and 0 if the variable itself does."""
        model = self._model
        if not self._is_jax or getattr(model, "_jax_state_synced", True) or not getattr(model, "_jax_state", None):
            return None, 0
        state = model._jax_state
        lengths = tuple(len(state[kind]) for kind in ("metrics_variables", "optimizer_variables"))
        if lengths != self._lengths:
            # Metrics are built in the first step.
            self._lengths = lengths
            owners = {"metrics_variables": model.metrics_variables, "optimizer_variables": model.optimizer.variables}
            self._places = {
                id(each): (kind, position) for kind, own in owners.items() for position, each in enumerate(own)
            }
        found = self._places.get(id(variable))
        if found is None:
            # Of another optimizer, say, which the trainer does not carry.
            return None, 0
        kind, position = found
        return state[kind], position


class CarriedVariable(keras.metrics.Metric):  # type: ignore[misc]
    """A variable that training steps read or write; it is a metric only so that every back end carries it along."""

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: it is written elsewhere."""

    def reset_state(self) -> None:
        """Do nothing: it is not of an epoch."""

    def result(self) -> dict[str, Any]:
        """Nothing to show."""
        return {}
