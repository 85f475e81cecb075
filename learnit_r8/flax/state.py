"""TrainState, and setting the learning rate inside one."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax.training import train_state


class TrainState(train_state.TrainState):  # type: ignore[no-untyped-call]
    """Flax's training state, with the batch statistics of models that have any.

    ``TrainState.create(apply_fn=, params=, tx=, batch_stats=)`` makes one; ``state.apply_gradients(grads=)`` the next.

    Attributes:
        batch_stats: A nest of arrays; None for models without batch normalisation.
    """

    batch_stats: Any = None


def with_lr(state: Any, lr: float) -> Any:
    """The state with another learning rate.

    Raises:
        ValueError: its optimizer was not made with ``optax.inject_hyperparams``.
    """
    opt_state, is_set = _with_lr(state.opt_state, np.float32(lr))
    if not is_set:
        raise ValueError(
            "state.tx must be made with optax.inject_hyperparams for the scheduler to set its learning_rate, as in "
            f"optax.inject_hyperparams(optax.adam)(learning_rate=0.0), got {type(state.opt_state).__name__}."
        )
    return state.replace(opt_state=opt_state)


def _with_lr(opt_state: Any, lr: np.float32) -> tuple[Any, bool]:
    hyperparams = getattr(opt_state, "hyperparams", None)
    if hyperparams is not None and "learning_rate" in hyperparams:
        # The same type at every step: another one would make the user's jitted function compile again.
        rate = np.asarray(lr, dtype=getattr(hyperparams["learning_rate"], "dtype", np.float32))
        return opt_state._replace(hyperparams={**hyperparams, "learning_rate": rate}), True
    if not isinstance(opt_state, tuple):
        return opt_state, False
    parts = [_with_lr(part, lr) for part in opt_state]
    values = [part for part, _ in parts]
    new = type(opt_state)(*values) if hasattr(opt_state, "_fields") else tuple(values)
    return new, any(is_set for _, is_set in parts)
