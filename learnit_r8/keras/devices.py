"""Several devices under ``fit``: the replicas of a TensorFlow strategy, and the devices of a Keras distribution."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
from keras import ops
from keras.src.losses.loss import unscale_loss_for_distribution

unscale_loss = unscale_loss_for_distribution
"""Undoes the division of a loss by the number of replicas."""

SEVERAL_PROCESSES = (
    "model must be trained by one process, got {}: each of its processes would judge and heal by itself. Use a "
    "MirroredStrategy on the devices of one machine, or torch's DistributedDataParallel with learnit_r8.torch.attach()."
)
ENTERED_LATE = (
    "model must be made and compiled where it is trained, got one whose variables are on one device under {} of {} "
    "devices; enter it before the model is made."
)
TOO_FEW = (
    "batch_size must leave each of the strategy's {} replicas a sample, got a batch of {}; give R8Scheduler "
    "last_batch='drop' or 'fill'."
)
OTHER_NUMBER = (
    "the saved run was on {} devices, and goes on on {}: batches and rates are the same, but sums over devices round "
    "differently."
)


def strategy_of(model: Any) -> Any:
    """The ``tf.distribute`` strategy of a model; None on other back ends."""
    return getattr(model, "distribute_strategy", None)


def scope_of(model: Any) -> Any:
    """Where variables of a model are made."""
    strategy = strategy_of(model)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def num_replicas(model: Any) -> int:
    """Replicas of a model that a ``tf.distribute`` strategy trains, each on its part of a batch."""
    strategy = strategy_of(model)
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


def num_devices(model: Any) -> int:
    """Devices that a model is trained on."""
    distribution = _distribution()
    return num_replicas(model) if distribution is None else int(distribution.device_mesh.devices.size)


def check_devices(model: Any) -> None:
    """Raise ValueError if a model is trained in several processes, or on devices that its variables are not on."""
    strategy, distribution, variables = strategy_of(model), _distribution(), model.trainable_variables
    name = type(distribution or strategy).__name__
    if getattr(getattr(strategy, "extended", None), "_num_workers", 1) > 1:
        raise ValueError(SEVERAL_PROCESSES.format("MultiWorkerMirroredStrategy"))
    if getattr(strategy, "should_use_with_coordinator", False):
        raise ValueError(SEVERAL_PROCESSES.format(name))
    if distribution is not None:
        is_late = any(getattr(each, "_layout", None) is None for each in variables)
    else:
        is_late = num_replicas(model) > 1 and not all(hasattr(each.value, "values") for each in variables)
    if is_late and num_devices(model) > 1:
        raise ValueError(ENTERED_LATE.format(name, num_devices(model)))


def _distribution() -> Any:
    return keras.distribution.distribution() if keras.backend.backend() == "jax" else None


def gather(rows: list[Any]) -> list[Any]:
    """Within a training step, the rows of all replicas in the order of the batch; outside of replicas, these.

    Args:
        rows: number[B, ...] each, of one replica.
    """
    if keras.backend.backend() != "tensorflow":
        return rows
    import tensorflow as tf

    if tf.distribute.get_strategy().num_replicas_in_sync < 2 or tf.distribute.in_cross_replica_context():
        return rows

    def join(strategy: Any, *parts: Any) -> list[Any]:
        return [tf.concat(strategy.experimental_local_results(each), axis=0) for each in parts]

    # Not all_gather: its collective operations are confused by a second strategy in one process.
    joined: list[Any] = tf.distribute.get_replica_context().merge_call(
        join, args=tuple(map(ops.convert_to_tensor, rows))
    )
    return joined


def split(dataset: Any, strategy: Any) -> Any:
    """A ``tf.data.Dataset`` of batches for the replicas of a strategy, each batch cut in parts of one size.

    TensorFlow itself cuts the stream of samples, so that a short batch would shift all that follow.
    """
    import tensorflow as tf

    count = strategy.num_replicas_in_sync

    def parts(*batch: Any) -> Any:
        size = tf.shape(tf.nest.flatten(batch)[0])[0]

        def part(number: Any) -> Any:
            first, last = number * size // count, (number + 1) * size // count
            cut = tf.nest.map_structure(lambda each: each[first:last], batch)
            return cut if len(cut) > 1 else cut[0]

        return tf.data.Dataset.range(count, output_type=tf.int32).map(part)

    return strategy.distribute_datasets_from_function(lambda _: dataset.flat_map(parts).prefetch(count))
