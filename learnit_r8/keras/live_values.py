"""The values of variables while ``fit`` runs, and those that its steps return.

On JAX the trainer keeps them in lists of its own from the first step of an epoch to its last. Syncing the whole model
at each step, to read one variable and to set another, would cost more than a small step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from .state import as_numpy

METRICS_EVERY = 16
"""Batches between two copies of Keras' running means."""


class LiveValues:
    """Reads and sets metrics and optimizer variables of a model, wherever they are now.

    Args:
        model: A compiled Keras model.

    Attributes:
        metrics: The running means that were kept last, by variable.
    """

    def __init__(self, model: Any) -> None:
        self.metrics: list[tuple[Any, NDArray[Any]]] = []
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
        values, position = self._place_of(variable)
        if values is not None and isinstance(values, list):
            values[position] = np.array(number, values[position].dtype)
            return
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

    def keep_metrics(self) -> None:
        """Remember Keras' running means, in which one NaN would stay to the end of the epoch."""
        own = [each for each in self._model.metrics_variables if not each.path.startswith("r8_")]
        self.metrics = [(each, np.array(self.read(each))) for each in own]

    def put_metrics_back(self) -> None:
        """Set the running means to what they were when they were kept."""
        self.sync()
        # Some may be built since.
        self._model.reset_metrics()
        for variable, value in self.metrics:
            variable.assign(value)

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


class StepReturns:
    """What the training steps of a model return for us, taken out before anybody else sees it.

    Args:
        model: A Keras model; it makes its training function anew, and keeps this for good.
    """

    def __init__(self, model: Any) -> None:
        self._values: dict[str, Any] = {}
        self._names: list[str] = []
        self._is_within = False
        make = getattr(model.make_train_function, "__wrapped__", model.make_train_function)

        @functools.wraps(make)
        def make_train_function(*args: Any, **kwargs: Any) -> Any:
            make(*args, **kwargs)
            if getattr(model.train_function, "returns", None) is not self:
                model.train_function = self._taking_out(model.train_function)
            return model.train_function

        model.make_train_function = make_train_function
        # A step traced before returns nothing of ours.
        model.train_function = None

    def put(self, logs: Any, values: Mapping[str, Any]) -> Any:
        """The logs of a step and these values; None where nobody would take them out, as in a loop of the user's."""
        if not self._is_within or not isinstance(logs, Mapping):
            return None
        self._names = [*values]
        return {**logs, **values}

    def take(self) -> dict[str, Any]:
        """What the last step returned, once."""
        values, self._values = self._values, {}
        return values

    def _taking_out(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def train_function(*args: Any) -> Any:
            self._is_within = True
            try:
                done = function(*args)
            finally:
                self._is_within = False
            # JAX hands the state on beside the logs.
            logs = done[0] if isinstance(done, tuple) else done
            self._values = {name: logs.pop(name) for name in self._names if name in logs}
            return done

        train_function.returns = self  # type: ignore[attr-defined]
        return train_function
