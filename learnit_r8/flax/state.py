"""TrainState, and setting the learning rate inside one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.training import train_state


class TrainState(train_state.TrainState):  # type: ignore[no-untyped-call]
    """Flax's training state, with the batch statistics of models that have any.

    ``TrainState.create(apply_fn=, params=, tx=, batch_stats=)`` makes one; ``state.apply_gradients(grads=)`` the next.

    Attributes:
        batch_stats: A nest of arrays; None for models without batch normalisation.
    """

    batch_stats: Any = None


def is_of_devices(array: Any) -> bool:
    """Whether the first dimension of an array is that of the devices, as ``pmap`` makes it."""
    if not isinstance(array, jax.Array) or not array.ndim or not array.is_fully_addressable:
        return False
    devices = array.sharding.device_set
    return len(devices) == array.shape[0] > 1 and array.sharding.shard_shape(array.shape)[0] == 1


def with_lr(state: Any, lr: float) -> Any:
    """The state with another learning rate; that of an NNX optimizer is set in place.

    Args:
        state: Something with an ``opt_state``, as a `TrainState` or an NNX optimizer; or a tuple, list or dictionary
            with one of these, or an optimizer's state itself, in it.
        lr: For every ``learning_rate`` of ``optax.inject_hyperparams``, whatever wraps it.

    Raises:
        ValueError: no optimizer was made with ``optax.inject_hyperparams``, or its ``learning_rate`` is a schedule.
    """
    new, is_set = _with_lr(state, np.float32(lr))
    if not is_set:
        raise ValueError(
            "state.tx must be made with optax.inject_hyperparams for the scheduler to set its learning_rate, as in "
            f"optax.inject_hyperparams(optax.adam)(learning_rate=0.0), got "
            f"{type(getattr(state, 'opt_state', state)).__name__}."
        )
    return new


def lr_of(part: Any) -> float | None:
    """The learning rate of ``optax.inject_hyperparams`` in a state as `with_lr` takes it; None if none can be set."""
    hyperparams = _hyperparams(part)
    if hyperparams is not None and "learning_rate" in hyperparams:
        is_set = "learning_rate" in getattr(part, "hyperparams_states", {})
        return None if is_set else float(np.max(np.asarray(hyperparams["learning_rate"])))
    if not isinstance(part, nnx.Rngs) and hasattr(part, "opt_state"):
        return lr_of(part.opt_state)
    inner = part.values() if isinstance(part, Mapping) else part if isinstance(part, (tuple, list)) else ()
    return next((found for each in inner if (found := lr_of(each)) is not None), None)


def _hyperparams(part: Any) -> Any:
    # Rngs makes a stream for an attribute of any name.
    return None if isinstance(part, nnx.Rngs) else getattr(part, "hyperparams", None)


def _with_lr(part: Any, lr: np.float32) -> tuple[Any, bool]:
    """A part of a state with another rate, and whether there is one in it."""
    hyperparams = _hyperparams(part)
    if hyperparams is not None and "learning_rate" in hyperparams:
        return _with_rate(part, hyperparams, lr), True
    if not isinstance(part, nnx.Rngs) and hasattr(part, "opt_state"):
        opt_state, is_set = _with_lr(part.opt_state, lr)
        # An NNX optimizer was changed in place.
        return (part.replace(opt_state=opt_state) if is_set and hasattr(part, "replace") else part), is_set
    if isinstance(part, Mapping):
        pairs = {name: _with_lr(value, lr) for name, value in part.items()}
        is_set = any(found for _, found in pairs.values())
        return (type(part)({name: new for name, (new, _) in pairs.items()}) if is_set else part), is_set  # type: ignore[call-arg]
    if not isinstance(part, (tuple, list)):
        return part, False
    parts = [_with_lr(each, lr) for each in part]
    values = [each for each, _ in parts]
    if not any(found for _, found in parts):
        return part, False
    return (type(part)(*values) if hasattr(part, "_fields") else type(part)(values)), True


def _with_rate(part: Any, hyperparams: Any, lr: np.float32) -> Any:
    if "learning_rate" in getattr(part, "hyperparams_states", {}):
        raise ValueError(
            "learning_rate must be a number in optax.inject_hyperparams where a scheduler sets it, got a schedule, "
            "which would overwrite it at each step; give its curve as scheduler_mode of R8Scheduler."
        )
    before = hyperparams["learning_rate"]
    # The same type at every step: another one would make the user's jitted function compile again. A replicated state
    # has one for each device.
    rate = np.full(getattr(before, "shape", ()), lr, dtype=getattr(before, "dtype", np.float32))
    if hasattr(before, "set_value"):
        before.set_value(jax.numpy.asarray(rate))
        return part
    return part._replace(hyperparams={**hyperparams, "learning_rate": rate})
