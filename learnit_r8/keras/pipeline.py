"""Rows gathered by ``tf.data`` in an order drawn before: no Python runs while the training does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Ticket


class Pipeline:
    """Batches of rows, in TensorFlow's own threads.

    Args:
        columns: N rows each: a tensor, or a tuple or dict of them; None for the indices, int64[B], alone.
        r8: The scheduler, which sets the number and the size of an epoch's batches.

    Attributes:
        dataset: ``tf.data.Dataset`` of the batches of a whole epoch.
    """

    def __init__(self, columns: Any, r8: R8Scheduler) -> None:
        import tensorflow as tf

        self._order = EpochOrder(r8)
        options = tf.data.Options()
        # Optimizing two stages anew each epoch costs more than it saves.
        options.experimental_optimization.apply_default_optimizations = False
        numbers = tf.data.Dataset.range(r8.steps_per_epoch)
        self.dataset = numbers.map(lambda number: self._order.rows(columns, number)).with_options(options)

    def batches(self, tickets: Sequence[Ticket], *, prefetch: int) -> Any:
        """The ``tf.data.Dataset`` of these batches, in order.

        Args:
            tickets: At most those of a whole epoch.
            prefetch: Batches to gather ahead, >= 0; -1 lets TensorFlow choose.
        """
        self._order.set(tickets)
        return self.dataset.take(len(tickets)).prefetch(prefetch)


class EpochOrder:
    """The samples of an epoch, batch by batch, in variables, so that a pipeline that reads them is built once.

    Args:
        r8: The scheduler, which sets the number and the size of an epoch's batches.

    Attributes:
        counts: int64[K], samples in each batch; 0 after the last one.
        steps: int64[K], the step of each batch.
        seed: int64, that of the run.
    """

    def __init__(self, r8: R8Scheduler) -> None:
        import tensorflow as tf

        most_batches, batch_size = r8.steps_per_epoch, min(r8.table.batch_size, r8.table.num_samples)
        with tf.device("CPU"):
            self._indices = tf.Variable(tf.zeros((most_batches, batch_size), tf.int64), trainable=False)
            self.counts = tf.Variable(tf.zeros((most_batches,), tf.int64), trainable=False)
            self.steps = tf.Variable(tf.zeros((most_batches,), tf.int64), trainable=False)
            self.seed = tf.Variable(r8.host.seed % 2**63, trainable=False, dtype=tf.int64)
        self._r8 = r8

    def set(self, tickets: Sequence[Ticket]) -> None:
        """Note the batches, at most those of a whole epoch."""
        indices, counts = np.zeros(self._indices.shape, np.int64), np.zeros(self.counts.shape, np.int64)
        steps = np.zeros_like(counts)
        for number, ticket in enumerate(tickets):
            counts[number], steps[number] = len(ticket.indices), ticket.step
            indices[number, : counts[number]] = ticket.indices
        self._indices.assign(indices)
        self.counts.assign(counts)
        self.steps.assign(steps)
        # A resumed run has that of the saved one.
        self.seed.assign(self._r8.host.seed % 2**63)

    def places(self, number: Any) -> Any:
        """int64[counts[number]], the places of a batch's samples in the order of the epoch."""
        import tensorflow as tf

        first = number * self._indices.shape[1]
        return tf.range(first, first + tf.gather(self.counts, number))

    def rows(self, columns: Any, number: Any) -> Any:
        """The rows of a batch, by its number; the indices where ``columns`` is None."""
        import tensorflow as tf

        # Of few operations: an epoch begins with the optimization of each.
        indices = tf.slice(tf.gather(self._indices, number), [0], [tf.gather(self.counts, number)])
        return indices if columns is None else tf.nest.map_structure(lambda each: tf.gather(each, indices), columns)


def refuse_weights(r8: R8Scheduler) -> None:
    """Raise ValueError if a policy weights samples, which batches alone cannot tell."""
    if r8.policy.selects:
        raise ValueError(
            f"policy must not weight samples here, got {r8.policy!r}; use R8Dataset(x, y, r8), or draw() and report()."
        )


def has_stage(dataset: Any, name: str) -> bool:
    """Whether a ``tf.data.Dataset`` has a stage of a kind, such as "Shuffle" or "Cache"."""
    inputs: tuple[Any, ...] = getattr(dataset, "_inputs", tuple)()
    return name in type(dataset).__name__ or any(has_stage(each, name) for each in inputs)


def is_in_memory(column: Any) -> bool:
    """Whether a column is a plain array or a tensor of TensorFlow's, and not a file that looks like one."""
    import tensorflow as tf

    return tf.is_tensor(column) or (type(column) is np.ndarray and column.dtype.kind in "fiub")


def as_tensors(columns: Any, element_spec: Any) -> Any:
    """The columns as tensors in main memory, of the kinds of number that a batch has.

    Args:
        columns: Tuples and dicts of arrays and tensors, N rows each.
        element_spec: A batch of them as tensor specs.
    """
    import tensorflow as tf

    with tf.device("CPU"):
        return tf.nest.map_structure(lambda spec, data: tf.cast(data, spec.dtype), element_spec, columns)
