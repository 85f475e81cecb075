"""The state of a model and its optimizer: arrays for a backup, a file without pickled objects for a checkpoint."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ..sources.random_generators import set_torch_state, torch_state
from ..state import codec
from ..state.callbacks import OWN
from ..state.tree import is_own_kind
from .devices import num_devices, scope_of

SETS_RATE = (
    "learning_rate must be a number in the optimizer, as the scheduler sets it at each step, got {!r}; to keep it, "
    "give R8Scheduler scheduler_mode='keep'."
)

BY_LAYER = "by layer"
"""Part of a state whose weights are in the order of the layers; older ones have those that are trained first."""


class ModelState:
    """Reads and writes the variables of a model and its optimizer, random seeds included.

    Args:
        model: A Keras model, built.
        optimizer: Its optimizer; by default the one it was compiled with.
        others: Further optimizers, of a model with a ``train_step`` of its own; they may be built by their first step.
        keeps_rates: Whether the rates are the user's own: they stay as damage is healed, and come back on resume.
        waits: Whether the optimizer, too, may be built by its first step, as only that knows what it trains.

    Attributes:
        num_saved_devices: Devices of the saved run that is continued; None without.

    Raises:
        ValueError: there is no optimizer.
        RuntimeError: the model has no variables yet.
    """

    def __init__(
        self, model: Any, optimizer: Any = None, *, others: Sequence[Any] = (), keeps_rates: bool = False,
        waits: bool = False,
    ) -> None:  # fmt: skip
        optimizer = getattr(model, "optimizer", None) if optimizer is None else optimizer
        if optimizer is None:
            raise ValueError(
                f"model must be compiled, or an optimizer be given, got {model!r} without; call compile()."
            )
        # A model with a step of its own, as a GAN, is never called as a whole, and so never "built".
        if not (model.built or model.trainable_variables):
            raise RuntimeError(f"model must be built, got {model!r} without variables; give it an Input.")
        if not (optimizer.built or others or waits):
            with scope_of(model):
                optimizer.build(model.trainable_variables)
        self._model, self._optimizers, self._keeps_rates = model, [optimizer, *others], keeps_rates
        self._random: list[NDArray[Any]] = []
        self.num_saved_devices: int | None = None

    def is_of(self, model: Any, *optimizers: Any) -> bool:
        """Whether it reads this model and these optimizers."""
        return [*map(id, optimizers)] == [*map(id, self._optimizers)] and model is self._model

    def _variables(self, *, by_layer: bool = True) -> dict[str, list[Any]]:
        model = self._model
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        # Not `variables`: those of the metrics are no part of what was learned.
        of_model = [*model.trainable_variables, *model.non_trainable_variables]
        if by_layer:
            # Layers that are frozen, or no longer, change places there.
            places = {id(each): place for place, each in enumerate(model.variables)}
            of_model.sort(key=lambda each: places.get(id(each), len(places)))
        found = {"model": [*of_model, *own_variables(model, *self._optimizers)]}
        for number, optimizer in enumerate(self._optimizers, start=1):
            found["optimizer" if number == 1 else f"optimizer {number}"] = _without_rate(optimizer)
        return found

    def variables(self) -> list[list[Any]]:
        """All that a step changes: those of the model, of each optimizer without its rate, and of the metrics."""
        return [*self._variables().values(), list(self._model.metrics_variables)]

    def _rates(self) -> list[Any]:
        rates = map(rate_of, self._optimizers) if self._keeps_rates else ()
        return [rate for rate in rates if isinstance(rate, keras.Variable)]

    def read(self) -> dict[str, Any]:
        """All variables, under "model" and "optimizer", not copied: `R8Scheduler` copies them for its backups."""
        kinds = {**self._variables(), "rate": self._rates()}
        state: dict[str, Any] = {}
        for kind, variables in kinds.items():
            # By their paths, which messages name; with a number where two have the same.
            named = state[kind] = {}
            for number, each in enumerate(variables):
                named[each.path if each.path not in named else f"{each.path} {number}"] = as_numpy(each)
        places = {id(each): place for place, each in enumerate(self._model.weights)}
        built = [
            np.array(
                [places.get(id(each), -1) for each in optimizer._trainable_variables] if optimizer.built else [], int
            )
            for optimizer in self._optimizers
        ]
        # Layers of Keras on torch draw from torch's own generators, which are no variables.
        devices = [np.array(num_devices(self._model))]
        return {**state, "random": random_state(), "devices": devices, "built": built, BY_LAYER: True}

    def save(self, state_dict: Mapping[str, Any], filepath: str | os.PathLike[str]) -> None:
        """Write what `read` returned, and what is beside it, to a file without pickled objects.

        Args:
            state_dict: Holds it under "model", as `R8Scheduler` passes it to a ``save_callback``.
            filepath: The file.
        """
        state = state_dict["model"]
        # Without the names, which may be others in another process.
        named = {kind: list(part.values()) for kind, part in state.items() if isinstance(part, Mapping) and kind != OWN}
        codec.save({**state, **named}, filepath)

    def load(self, source: Any, *, from_ram: bool = False, is_resume: bool = False) -> Any:
        """Put all variables back; returns what the user's own callbacks keep beside them, None if nothing.

        Args:
            source: The path of a file that `save` wrote, or with ``from_ram`` what `read` returned.
            from_ram: Which of the two.
            is_resume: Whether the run goes on in another process.

        Raises:
            ValueError: it is of another model or optimizer, or one of several is not built. Nothing was changed.
        """
        state = source if from_ram else codec.read(Path(source))
        pairs: list[tuple[Any, Any]] = []
        built = state.get("built", [])
        self._build(built)
        for number, (kind, variables) in enumerate(self._variables(by_layer=state.get(BY_LAYER, False)).items()):
            shapes = [tuple(each.shape) for each in variables]
            arrays = _arrays_of(state, kind)
            is_built = not number or self._optimizers[number - 1].built
            if is_built and 0 < number <= len(built) and not len(built[number - 1]):
                # By a step since.
                arrays = self._fresh(self._optimizers[number - 1])
            given = [array.shape for array in arrays]
            if not is_built and shapes != given:
                raise ValueError(f"the {kind} must be built before a saved run goes on; call its build(variables).")
            if shapes != given:
                raise ValueError(f"the saved {kind} must have variables of shapes {shapes}, got {given}.")
            pairs += zip(variables, arrays, strict=True)
        rates = self._rates() if is_resume or not from_ram else []
        for variable, array in [*pairs, *zip(rates, _arrays_of(state, "rate"), strict=False)]:
            variable.assign(array)
        random = state["random"]
        set_random_state(random)
        self._random = [] if from_ram else random
        if is_resume:
            self.num_saved_devices = next(map(int, state.get("devices", [])), None)
        return state.get(OWN)

    def unbuilt(self) -> list[Any]:
        """The optimizers that their first step is yet to build."""
        return [each for each in self._optimizers if not each.built]

    def renew(self, optimizers: Sequence[Any]) -> None:
        """Put optimizers back to what they were as their first step built them."""
        for optimizer in optimizers:
            for variable, array in zip(_without_rate(optimizer), self._fresh(optimizer), strict=True):
                variable.assign(array)

    def _build(self, built: Sequence[NDArray[np.int64]]) -> None:
        """Build the optimizers over the weights that they had as a state was saved, by their places in the model."""
        weights = self._model.weights
        for optimizer, places in zip(self._optimizers, built, strict=False):
            if len(places) and not optimizer.built and min(places) >= 0 and max(places) < len(weights):
                with scope_of(self._model):
                    optimizer.build([weights[place] for place in places])

    def _fresh(self, optimizer: Any) -> list[NDArray[Any]]:
        """The variables of an optimizer, without its rate, before its first step."""
        again = type(optimizer).from_config(optimizer.get_config())
        with scope_of(self._model):
            again.build(optimizer._trainable_variables)
        return [as_numpy(each) for each in _without_rate(again)]

    def resume_random(self, *, is_set: bool) -> None:
        """Set the generators of a file that was loaded once more, if ``is_set``, as the first training since begins: a
        loader draws from them when it starts.
        """
        if self._random and is_set:
            set_random_state(self._random)
        self._random = []


class OwnVariable:
    """A variable of the back end that a model, a layer or an optimizer keeps, used as one of Keras.

    Attributes:
        value: The back end's variable.
        path: The name of what holds it, and of the attribute.
    """

    def __init__(self, value: Any, path: str) -> None:
        self.value, self.path = value, path

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its value."""
        return tuple(self.value.shape)

    def assign(self, array: Any) -> None:
        """Set its value."""
        if hasattr(self.value, "assign"):
            self.value.assign(array)
        else:
            torch: Any = sys.modules["torch"]
            self.value.detach().copy_(torch.as_tensor(array))


def own_variables(model: Any, *optimizers: Any) -> list[OwnVariable]:
    """The back end's variables that a model, its layers and optimizers keep as attributes, which Keras does not list.

    A ``train_step`` that accumulates gradients has them, for one. TensorFlow's are found in lists, dicts, modules and
    generators, too; torch's are parameters and buffers; JAX has none, as its arrays never change.
    """
    back_end = keras.backend.backend()
    found: dict[int, OwnVariable] = {}
    if back_end == "tensorflow":
        inner = [each.inner_optimizer for each in optimizers if hasattr(each, "inner_optimizer")]
        for holder in [*model._flatten_layers(), *optimizers, *inner]:
            for name in sorted(vars(holder).keys() - _attributes_of_keras()):
                # What TensorFlow's own saving notes of the same attributes.
                if not name.startswith("_self_"):
                    for value in _tensorflow_variables(vars(holder)[name]):
                        found.setdefault(id(value), OwnVariable(value, f"{holder.name}.{name}"))
    elif back_end == "torch":
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            found.setdefault(id(value), OwnVariable(value, name))
    if found:
        for variable in model.variables:
            found.pop(id(variable.value), None)
    return [*found.values()]


@functools.cache
def _attributes_of_keras() -> frozenset[str]:
    """Those of each layer, which hold variables of Keras alone; of a deep model they are nearly all that there are."""
    # With a name, as Keras counts those that have none.
    return frozenset(vars(keras.layers.Layer(name="r8_none")))


def _tensorflow_variables(value: Any) -> Iterator[Any]:
    import tensorflow as tf

    if isinstance(value, tf.Variable):
        yield value
    elif isinstance(value, tf.random.Generator):
        yield value.state
    elif isinstance(value, tf.Module):
        yield from value.variables
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensorflow_variables(each)


def trains_all(model: Any) -> bool:
    """Whether a step trains all trainable variables, and all are there: else only the first step tells which."""
    is_own_step = type(model).train_step.__module__.partition(".")[0] == "keras"
    return is_own_step and all(layer.built for layer in model._flatten_layers())


def _arrays_of(state: Mapping[str, Any], kind: str) -> list[NDArray[Any]]:
    """The arrays of a kind in their order; a file has no names."""
    arrays = state.get(kind, [])
    return list(arrays.values() if isinstance(arrays, Mapping) else arrays)


def _without_rate(optimizer: Any) -> list[Any]:
    """The variables of an optimizer but for its rate, which the scheduler sets at each step: that may be a variable of
    its own when a state is saved, and a function of another one when it is put back.
    """
    rate = rate_of(optimizer)
    return [each for each in optimizer.variables if each is not rate]


def rate_of(optimizer: Any) -> Any:
    """The rate of an optimizer, one that scales losses too: a variable, a schedule or a function."""
    return getattr(getattr(optimizer, "inner_optimizer", optimizer), "_learning_rate", None)


def random_state() -> list[NDArray[Any]]:
    """The states of torch's generators where it is the back end."""
    return torch_state() if keras.backend.backend() == "torch" else []


def set_random_state(state: list[NDArray[Any]]) -> None:
    """Set what `random_state` returned."""
    if keras.backend.backend() == "torch":
        set_torch_state(state)


def as_numpy(variable: Any) -> NDArray[Any]:
    """The value of a Keras variable of any back end, where it can be seen without a copy."""
    return to_numpy(variable.value)


def to_numpy(value: Any) -> NDArray[Any]:
    """A tensor of any back end, where it can be seen without a copy."""
    # numpy lacks bfloat16 and the like; float32 holds them exactly.
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype).startswith(("torch.bfloat", "torch.float8")) else value
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    return array if is_own_kind(array.dtype) else array.astype(np.float32)


def model_callbacks(model: Any, optimizer: Any = None) -> dict[str, Callable[..., Any]]:
    """Make the three callbacks of `R8Scheduler` for a model trained in your own loop; `R8Callback` brings its own.

    Args:
        model: A Keras model, built.
        optimizer: Its optimizer; by default the one it was compiled with.

    Returns:
        ``state_callback``, ``load_callback`` and ``save_callback``, to be passed on with ``**``.

    Raises:
        ValueError: there is no optimizer.
        RuntimeError: the model has no variables yet.
    """
    # A rate that the loop sets by hand comes back on resume; one of the scheduler's is set before each step.
    state = ModelState(model, optimizer, keeps_rates=True)
    return {"state_callback": state.read, "load_callback": state.load, "save_callback": state.save}
