"""Training for JAX and Flax: `train_loop` and what belongs to it, written on `learnit_r8.loops`.

Needs jax, flax and optax (``pip install learnit-r8[jax]``), and nothing of TensorFlow.
"""

try:
    import flax
    import jax
    import optax
except ImportError as error:
    raise ImportError(
        f"jax, flax and optax are required for learnit_r8.flax: pip install learnit-r8[jax] ({error})."
    ) from error

from .checkpoints import load_checkpoint, pack_scheduler, save_checkpoint, unpack_scheduler
from .config import TrainingConfig, load_config, save_config, save_metrics_history
from .metrics import (
    Metrics,
    accumulate_history,
    average_metrics,
    combine_metrics,
    create_metrics,
    format_metrics,
)
from .predictions import predictions_of
from .state import TrainState
from .train import train_epoch, train_loop

del flax, jax, optax

__all__ = [
    "Metrics",
    "TrainState",
    "TrainingConfig",
    "accumulate_history",
    "average_metrics",
    "combine_metrics",
    "create_metrics",
    "format_metrics",
    "load_checkpoint",
    "load_config",
    "pack_scheduler",
    "predictions_of",
    "save_checkpoint",
    "save_config",
    "save_metrics_history",
    "train_epoch",
    "train_loop",
    "unpack_scheduler",
]
