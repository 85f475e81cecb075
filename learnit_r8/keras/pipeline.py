"""Rows gathered by ``tf.data`` in an order drawn before: no Python runs while the training does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..sampling.ticket import Ticket
    from ..scheduler import R8Scheduler


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

        most_batches, batch_size = r8.steps_per_epoch, min(r8.table.batch_size, r8.table.num_samples)

        # The epoch's order, row by row; a variable, so that the pipeline is built once.
        self._rows = tf.Variable(tf.zeros((most_batches, batch_size), tf.int64), trainable=False)
        self._counts = tf.Variable(tf.zeros((most_batches,), tf.int64), trainable=False)

        def batch(number: Any) -> Any:
            indices = self._rows[number][: self._counts[number]]
            return indices if columns is None else tf.nest.map_structure(lambda each: tf.gather(each, indices), columns)

        options = tf.data.Options()
        # Optimizing two stages anew each epoch costs more than it saves.
        options.experimental_optimization.apply_default_optimizations = False
        self.dataset = tf.data.Dataset.range(most_batches).map(batch).with_options(options)

    def batches(self, tickets: Sequence[Ticket], *, prefetch: int) -> Any:
        """The ``tf.data.Dataset`` of these batches, in order.

        Args:
            tickets: At most those of a whole epoch.
            prefetch: Batches to gather ahead, >= 0; -1 lets TensorFlow choose.
        """
        rows, counts = np.zeros(self._rows.shape, np.int64), np.zeros(self._counts.shape, np.int64)
        for number, ticket in enumerate(tickets):
            counts[number] = len(ticket.indices)
            rows[number, : counts[number]] = ticket.indices
        self._rows.assign(rows)
        self._counts.assign(counts)
        return self.dataset.take(len(tickets)).prefetch(prefetch)


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
