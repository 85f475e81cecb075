"""Training for JAX and Flax: `train_loop` and what belongs to it, written on `learnit_r8.loops`.

Needs jax, flax and optax (``pip install ".[jax]"`` in a clone), and nothing of TensorFlow.
"""

from .._validation import how_to_install

try:
    import flax
    import jax
    import optax
except ImportError as error:
    raise ImportError(
        f"jax, flax and optax are required for learnit_r8.flax: {how_to_install('jax')} ({error})."
    ) from error

from .managed_state import ManagedState, predictions_of
from .state import TrainState
from .train import (
    Metrics,
    average_metrics,
    format_metrics,
    load_checkpoint,
    pack_scheduler,
    save_checkpoint,
    save_metrics_history,
    train_loop,
    unpack_scheduler,
)

del flax, jax, optax

__all__ = [
    "ManagedState",
    "Metrics",
    "TrainState",
    "average_metrics",
    "format_metrics",
    "load_checkpoint",
    "pack_scheduler",
    "predictions_of",
    "save_checkpoint",
    "save_metrics_history",
    "train_loop",
    "unpack_scheduler",
]
