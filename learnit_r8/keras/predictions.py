"""Predictions of a batch from what a Keras model puts out, on any back end, also within a compiled function."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..table.labels.predictions import MOST_CLASSES, UNLABELLED, Predictions, check_shapes

LEAST = 1e-37
"""Probabilities below are taken for this."""


def predictions_of(y_true: Any, y_pred: Any, *, from_logits: bool = False) -> Predictions:
    """The predictions of a batch, for `Batches.report` and `R8Scheduler.report`.

    Args:
        y_true: int[B] or int[B, 1], classes in [0, C); -1 for samples without a label.
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
    return _judged(given, scores, from_logits=from_logits)


def predictions_in(loss: Any, y_true: Any, y_pred: Any) -> Predictions | None:
    """The predictions in what a loss of Keras is computed from; None unless it is a cross entropy of single labels.

    Args:
        loss: A `keras.losses.Loss`. One with a ``call`` of its own may do anything with the targets.
        y_true: Its targets: classes, one-hot rows, or 0 and 1 of two classes. A sample whose target is in between, as
            with mixed samples, or no class of the model, has no label.
        y_pred: float[B, C], or float[B, 1] of two classes.
    """
    if getattr(type(loss), "call", None) is not _CALL:
        return None
    function, settings = getattr(loss, "fn", None), getattr(loss, "_fn_kwargs", {})
    given, scores = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    if len(scores.shape) != 2 or settings.get("axis", -1) not in (-1, 1):
        return None
    is_column = len(given.shape) == 1 or (len(given.shape) == 2 and given.shape[1] == 1)
    classes = scores.shape[1]
    if function in _BINARY and classes == 1 and is_column:
        flat = ops.reshape(given, (-1,))
        given = ops.where((flat == 0) | (flat == 1), ops.cast(flat, "int32"), UNLABELLED)
    elif classes is None or not 2 <= classes <= MOST_CLASSES:
        return None
    elif function is keras.losses.sparse_categorical_crossentropy and is_column:
        given = ops.cast(ops.reshape(given, (-1,)), "int32")
        # What is gathered by these below must exist.
        given = ops.where((given >= 0) & (given < classes), given, UNLABELLED)
        if settings.get("ignore_class") is not None:
            given = ops.where(given == settings["ignore_class"], UNLABELLED, given)
    elif function in _ONE_HOT and len(given.shape) == 2:
        is_one = (ops.max(given, axis=1) == 1) & (ops.sum(ops.cast(given != 0, "int32"), axis=1) == 1)
        given = ops.where(is_one, ops.cast(ops.argmax(given, axis=1), "int32"), UNLABELLED)
    else:
        return None
    return _judged(given, scores, from_logits=bool(settings.get("from_logits", False)))


_CALL = keras.losses.SparseCategoricalCrossentropy.call
"""What all losses of Keras inherit: it calls ``fn`` with the targets as they are."""

_BINARY = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)
_ONE_HOT = (keras.losses.categorical_crossentropy, keras.losses.categorical_focal_crossentropy)


def _judged(given: Any, scores: Any, *, from_logits: bool) -> Predictions:
    """The predictions from labels, number[B], and scores as `predictions_of` takes them, of checked shapes."""
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
    own = ops.squeeze(ops.take_along_axis(scores, ops.expand_dims(ops.maximum(given, 0), 1), axis=1), 1)
    rival = ops.where(predicted == given, highest[:, 1], highest[:, 0])
    return Predictions(rival - own, predicted, given, int(scores.shape[1]))
