"""The values of variables while ``fit`` runs, and the factor of recovery on the rates of optimizers.

On JAX the trainer keeps them in lists of its own from the first step of an epoch to its last. Syncing the whole model
at each step, to read one variable, would cost more than a small step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from .state import as_numpy, rate_of

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler


class LiveValues:
    """Reads and sets metrics and optimizer variables of a model, wherever they are now.

    Args:
        model: A compiled Keras model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._is_jax = keras.backend.backend() == "jax"

    def read(self, variable: Any) -> NDArray[Any]:
        """The value, where it can be seen without a copy."""
        model = self._model
        is_carried = self._is_jax and not getattr(model, "_jax_state_synced", True)
        carried = getattr(model, "_jax_state", None) if is_carried else None
        if carried:
            owners = {"metrics_variables": model.metrics_variables, "optimizer_variables": model.optimizer.variables}
            for kind, own in owners.items():
                # Metrics are built in the first step; and one of another optimizer, say, is in neither list.
                for each, value in zip(own, carried[kind], strict=False):
                    if each is variable:
                        return np.asarray(value)
        return as_numpy(variable)

    def set(self, variable: Any, number: float) -> None:
        """Set a variable that is one number."""
        # The lists that the trainer shows are copies of those that its next step is given.
        self.sync()
        own = variable.value
        if type(own).__name__ == "ResourceVariable":
            # Past the conversions of Keras, which take several times as long.
            own.assign(number, read_value=False)
        else:
            variable.assign(number)

    def sync(self) -> None:
        """Bring all values back to the variables; they are set there until the next step begins."""
        if self._is_jax:
            self._model.jax_state_sync()


class CarriedVariable(keras.metrics.Metric):  # type: ignore[misc]
    """A variable that training steps read or write; it is a metric only so that every back end carries it along."""

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: it is written elsewhere."""

    def reset_state(self) -> None:
        """Do nothing: it is not of an epoch."""

    def result(self) -> dict[str, Any]:
        """Nothing to show."""
        return {}


NOT_SCALED = (
    "the learning rate of an optimizer is {!r} on JAX, in a model that names its metrics itself: recovery cannot lower "
    "it there, and only puts weights back."
)


class RateFactor:
    """Lowers the rates of optimizers for the length of a step, where recovery asks for it.

    A rate that is a variable is set right before the step and put back right after it: callbacks, wherever they stand,
    neither read the lowered one nor have theirs overwritten. A schedule in the optimizer is multiplied by a variable,
    which is 1 as long as all is well.

    Args:
        model: The model that the optimizers train.
        optimizers: Keras optimizers.
        live: Sets the variables of the first one, wherever they are.

    Attributes:
        factor: For the next step alone.
        was_lowered: Whether the rates of the last step were lowered.
    """

    def __init__(self, model: Any, optimizers: list[Any], live: LiveValues) -> None:
        self.factor, self.was_lowered = 1.0, False
        self._model, self._live = model, live
        # Optimizers and their rates, where these are variables.
        self._rates: list[tuple[Any, Any]] = []
        self._unscaled: Any = None
        self._factor: Any = None
        for optimizer in optimizers:
            rate = rate_of(optimizer)
            if isinstance(rate, keras.Variable):
                self._rates.append((optimizer, rate))
            elif not self._wrap(model, getattr(optimizer, "inner_optimizer", optimizer)):
                self._unscaled = rate

    def _wrap(self, model: Any, optimizer: Any) -> bool:
        """Multiply a schedule by the factor; False where that cannot be."""
        current = optimizer._get_current_learning_rate
        factor = getattr(current, "r8_factor", self._factor) or _Factor.of(model)
        if factor is None:
            return False
        self._factor = factor
        if not hasattr(current, "r8_factor"):

            def scaled() -> Any:
                return current() * factor.now

            scaled.r8_factor = factor  # type: ignore[attr-defined]
            optimizer._get_current_learning_rate = scaled
            # A step traced before knows nothing of the factor.
            model.train_function = None
        return True

    @property
    def variable(self) -> Any:
        """The rate of the first optimizer whose rate is a variable, and that is in use; None without."""
        # One that a model with optimizers of its own was compiled with by default never steps.
        return min(self._rates, key=lambda each: not each[0].built, default=(None, None))[1]

    @property
    def value(self) -> float:
        """The user's rate now; NaN without such a variable."""
        return float(self._live.read(self.variable)) if self._rates else float("nan")

    def begin_step(self, r8: R8Scheduler) -> None:
        """Have the rates of the next step lowered where recovery asks for it."""
        self.factor = r8.lr_factor
        if self.factor != 1 and self._unscaled is not None:
            r8.controller.limit.is_ignored = True
            r8.host.say_once("rate in the step", NOT_SCALED.format(self._unscaled))

    def take_step(self, step: Callable[..., Any], *args: Any) -> Any:
        """Take a step with the rates as they are to be.

        Args:
            step: The training function.
            args: Its arguments; on JAX those are the lists that the trainer carries, and the data.
        """
        factor, self.factor = self.factor, 1.0
        self.was_lowered = factor != 1
        if factor == 1:
            return step(*args)
        variables = [rate for _, rate in self._rates] + ([] if self._factor is None else [self._factor.by])
        if keras.backend.backend() == "jax":
            return self._take_carried(step, variables, factor, *args)
        saved = [(each, float(as_numpy(each))) for each in variables]
        try:
            for variable, value in saved:
                self._live.set(variable, value * factor)
            return step(*args)
        finally:
            for variable, value in saved:
                self._live.set(variable, value)

    def _take_carried(
        self, step: Callable[..., Any], variables: list[Any], factor: float, carried: Any, data: Any
    ) -> tuple[Any, Any]:
        ours, model = {id(each) for each in variables}, self._model
        places = [
            (kind, place)
            for kind, owned in ((2, model.optimizer.variables), (3, model.metrics_variables))
            for place, each in enumerate(owned[: len(carried[kind])])
            if id(each) in ours
        ]

        def exchanged(lists: Any, values: list[Any]) -> Any:
            new = [list(each) for each in lists]
            for (kind, place), value in zip(places, values, strict=True):
                new[kind][place] = value
            # Of their types: of others, the step would be compiled again.
            return tuple(type(old)(each) for old, each in zip(lists, new, strict=True))

        own = [carried[kind][place] for kind, place in places]
        logs, after = step(exchanged(carried, [value * factor for value in own]), data)
        return logs, exchanged(after, own)


class _Factor(CarriedVariable):
    """A factor that a training step reads.

    It is a metric only so that JAX hands it to the step; whatever else a step reads is compiled into it there.
    """

    def __init__(self) -> None:
        super().__init__(name="r8_rate_factor")
        self.by = self.add_variable(shape=(), initializer="ones", dtype="float32", name="by")
        self._in_step: Any = None

    @classmethod
    def of(cls, model: Any) -> _Factor | None:
        """A factor in the steps of a model; None where JAX does not hand it on."""
        factor = cls()
        if keras.backend.backend() != "jax":
            return factor
        model._metrics.append(factor)
        if not any(each is factor for each in model.metrics):
            model._metrics.remove(factor)
            return None
        step = model.train_step

        def train_step(state: Any, data: Any) -> Any:
            places = [number for number, each in enumerate(model.metrics_variables) if each is factor.by]
            factor._in_step = state[3][places[0]]
            try:
                return step(state, data)
            finally:
                factor._in_step = None

        model.train_step = train_step
        return factor

    @property
    def now(self) -> Any:
        """The factor, in a step or outside of one."""
        return self.by if self._in_step is None else self._in_step
