"""Values that a compiled training step returns beside its logs: they cost less than a variable to be read after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any


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
