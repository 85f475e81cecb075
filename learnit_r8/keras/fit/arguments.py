"""Checks of the arguments of ``fit``, if a scheduler draws the batches and sets the rate."""

from __future__ import annotations

from typing import Any

import keras

from ..dataset import R8Dataset
from .frame import callbacks_of_fit, local_of_fit

REFUSED = {
    "LearningRateScheduler": "the scheduler sets the rate at each step: give it the curve as scheduler_mode, or 'keep'",
    "ReduceLROnPlateau": "the scheduler sets the rate at each step: choose its initial_lr, or scheduler_mode='keep'",
    "BackupAndRestore": "it would restore Keras' epochs, but not the scheduler: use checkpoint_dir and "
    "resume='auto' of R8Scheduler",
}
"""Callbacks of Keras that would do nothing or harm, and what to do instead."""


SET_RATES = "LearningRateScheduler", "ReduceLROnPlateau"


def check_fit(dataset: R8Dataset) -> bool:
    """Check the arguments of the ``fit`` that is running.

    Args:
        dataset: What it is to train on.

    Returns:
        Whether it trains on something else, which may take its batches from there.

    Raises:
        ValueError: an argument that does not work with a scheduler; the message says what does.
    """
    # Other data come first: what else is wrong is a consequence.
    is_wrapped = _is_wrapped(dataset)
    if local_of_fit("shuffle"):
        raise ValueError("shuffle must be False in fit(), as the scheduler decides the order; got True.")
    steps, most = local_of_fit("steps_per_epoch"), dataset.r8.steps_per_epoch
    if steps is not None and steps != most:
        raise ValueError(f"steps_per_epoch must be left out in fit(), or be the scheduler's {most}, got {steps!r}.")
    keeps_rates = dataset.r8.keeps_rates
    for callback in callbacks_of_fit() or []:
        for name, reason in REFUSED.items():
            if not (keeps_rates and name in SET_RATES) and isinstance(callback, getattr(keras.callbacks, name)):
                raise ValueError(f"callbacks must not have a {name}, got {callback!r}: {reason}.")
    return is_wrapped


def _is_wrapped(dataset: R8Dataset) -> bool:
    x: Any = local_of_fit("x")
    if isinstance(x, R8Dataset) or local_of_fit("epoch_iterator") is None:
        # One of another callback asks for its own.
        return False
    if not isinstance(x, keras.utils.PyDataset):
        raise ValueError(
            "x must be the R8Dataset of the R8Callback in fit(), or a PyDataset that takes its batches from that one, "
            f"got {type(x).__name__}, which knows nothing of the scheduler's order; for tf.data use "
            "R8Dataset.from_tensor_slices(), or R8Callback(R8Scheduler()) without samples."
        )
    return True
