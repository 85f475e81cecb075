"""Predictions of a batch from what a Keras model puts out, on any back end, also within a compiled function."""

from __future__ import annotations

from typing import Any

from keras import ops

from ..table.labels.predictions import Predictions, check_shapes

LEAST = 1e-37
"""Probabilities below are taken for this."""


def predictions_of(y_true: Any, y_pred: Any, *, from_logits: bool = False) -> Predictions:
    """The predictions of a batch, for `Batches.report` and `R8Scheduler.report`.

    Args:
        y_true: int[B] or int[B, 1], classes in [0, C).
        y_pred: float[B, C], probabilities of the classes; or float[B] or float[B, 1], that of class 1 of two.
        from_logits: Whether these are logits.

    Returns:
        Tensors; a ``tf.function`` may return them.

    Raises:
        ValueError: the shapes or dtypes are not these; for one-hot targets give their ``argmax``.
    """
    given, scores = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    if len(given.shape) == 2 and given.shape[1] == 1:
        given = ops.squeeze(given, 1)
    is_whole = "int" in str(given.dtype)
    check_shapes(tuple(scores.shape), tuple(given.shape), is_whole=is_whole)
    scores = ops.cast(ops.stop_gradient(scores), "float32")
    if len(scores.shape) == 1 or scores.shape[1] == 1:
        scores = ops.reshape(scores, (-1,))
        others = ops.zeros_like(scores) if from_logits else 1 - scores
        scores = ops.stack([others, scores], axis=1)
    if not from_logits:
        scores = ops.log(ops.maximum(scores, LEAST))
    given = ops.cast(given, "int32")
    highest, order = ops.top_k(scores, 2)
    predicted = ops.cast(order[:, 0], "int32")
    own = ops.squeeze(ops.take_along_axis(scores, ops.expand_dims(given, 1), axis=1), 1)
    rival = ops.where(predicted == given, highest[:, 1], highest[:, 0])
    return Predictions(rival - own, predicted, given, int(scores.shape[1]))
