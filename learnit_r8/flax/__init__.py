"""Training for JAX and Flax: `train_loop` and what belongs to it, written on `learnit_r8.loops`.

Needs jax, flax and optax (``pip install ".[jax]"`` in a clone), and nothing of TensorFlow.
"""

from .._validation import how_to_install, import_needed

for _name in ("jax", "flax", "optax"):
    import_needed(_name, "learnit_r8.flax needs jax, flax and optax", how_to_install("jax"))

from .managed_state import ManagedState, TrainState, predictions_of
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
