"""Predictions: for each sample of a batch, the class that the model predicts and by how much it prefers that one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_CLASSES = 2**16 - 1

UNLABELLED = -1
"""The class given to a sample that has no single label: an ignored one, or one whose labels are mixed."""

IGNORED = -100
"""The target that torch and Transformers leave out of a loss: no label either."""

NUM_ROWS = 3
"""Numbers for each sample beside its loss."""


class Predictions(NamedTuple):
    """What the logits of a batch say about its labels; arrays or tensors of any framework.

    Attributes:
        margin: float32[B], the highest logit of the classes that are not the label minus that of the label: > 0 where
            the model predicts another class.
        predicted: int[B], the class of the highest logit.
        given: int[B], the label trained on; -1 where a sample has none, of which nothing is learned then.
        num_classes: C, in [2, 65535]; the same in all reports of a run.
    """

    margin: Any
    predicted: Any
    given: Any
    num_classes: int

    @staticmethod
    def unpack(packed: ArrayLike, num_classes: int) -> tuple[NDArray[np.float32], Predictions]:
        """Undo `pack`: the losses and the predictions.

        Args:
            packed: float32[4, B].
            num_classes: C.

        Raises:
            ValueError: ``packed`` has another shape.
        """
        rows = np.asarray(packed, np.float32)
        if rows.ndim != 2 or len(rows) != 1 + NUM_ROWS:
            raise ValueError(f"packed must have shape ({1 + NUM_ROWS}, B), got {rows.shape}.")
        losses, margin, predicted, given = rows
        return losses, Predictions(margin, predicted.astype(np.int64), given.astype(np.int64), num_classes)

    def pack(self, losses: ArrayLike) -> NDArray[np.float32]:
        """float32[4, B] with the losses, for one copy; classes up to 65,534 are exact in float32."""
        return np.stack([np.asarray(row, np.float32) for row in (losses, *self[:3])])


def predictions_of(logits: ArrayLike, targets: ArrayLike) -> Predictions:
    """The predictions of a batch from its logits, with numpy; ``torch`` and ``flax`` of this package have their own.

    Args:
        logits: float[B, C], or log probabilities; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C); -1 or -100 for samples without a label.

    Raises:
        ValueError: the shapes or dtypes are not these. With several labels a sample, sequences of labels or real
            numbers as targets, there is no one class that is predicted in place of the label.

    >>> predictions_of([[2.0, 0.0, 0.5], [2.0, 0.0, 0.5]], [0, 1]).margin
    array([-1.5,  2. ], dtype=float32)
    """
    scores, given = np.asarray(logits), np.asarray(targets)
    check_shapes(scores.shape, given.shape, is_whole=given.dtype.kind in "iu")
    scores = scores.astype(np.float32)
    if scores.ndim == 1 or scores.shape[1] == 1:
        scores = np.stack([np.zeros(len(scores), np.float32), scores.reshape(-1)], 1)
    classes = scores.shape[1]
    given = given.astype(np.int64)
    given[given == IGNORED] = UNLABELLED
    check_range(given, classes)
    rows, predicted = np.arange(len(given)), scores.argmax(1)
    own = scores[rows, given]
    scores[rows, given] = -np.inf
    with np.errstate(invalid="ignore"):
        return Predictions(scores.max(1) - own, predicted, given, classes)


def check_range(given: Any, num_classes: int) -> None:
    """Raise ValueError unless all targets are classes, or -1: int[B], an array or a tensor on the host."""
    lowest, highest = (int(given.min()), int(given.max())) if len(given) else (0, 0)
    if not UNLABELLED <= lowest <= highest < num_classes:
        raise ValueError(f"targets must be in [0, {num_classes}), got values from {lowest} to {highest}.")


def check_shapes(logits: tuple[int, ...], targets: tuple[int, ...], *, is_whole: bool) -> None:
    """Raise ValueError unless logits and targets are those of a classification with one label a sample.

    Args:
        logits, targets: Their shapes.
        is_whole: Whether the targets are whole numbers.
    """
    if len(logits) not in (1, 2) or (len(logits) == 2 and len(targets) == 2):
        kind = "sequences of labels" if len(logits) > 2 else "several labels a sample"
        raise ValueError(
            f"logits must have shape (B, C) or (B,) with targets of shape (B,), got {logits} and {targets}: with "
            f"{kind}, no single class is predicted; report the losses without predictions."
        )
    if len(targets) != 1 or targets[0] != logits[0]:
        raise ValueError(f"targets must have shape ({logits[0]},), one class a sample, got {targets}.")
    if not is_whole:
        raise ValueError(
            "targets must be whole numbers, the classes; for regression report the losses without predictions."
        )
    if len(logits) == 2 and logits[1] > MOST_CLASSES:
        raise ValueError(f"logits must have at most {MOST_CLASSES} classes, got {logits[1]}.")


class PredictionRows(NamedTuple):
    """Checked predictions of a batch.

    Attributes:
        rows: float32[3, B]: margin, predicted class, given class.
        num_classes: C.
    """

    rows: NDArray[np.float32]
    num_classes: int


def read_predictions(given: Any, batch_size: int, known_classes: int) -> PredictionRows:
    """Check predictions and turn them into numbers.

    Args:
        given: `Predictions`, or what is no such thing.
        batch_size: B.
        known_classes: C of the reports before; 0 before the first.

    Raises:
        TypeError: it is no `Predictions`, or holds no real numbers.
        ValueError: a length, a class or the number of classes is wrong.
    """
    if not isinstance(given, Predictions):
        raise TypeError(f"predictions must be Predictions, as predictions_of() makes them, got {given!r}.")
    classes = given.num_classes
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"predictions.num_classes must be a whole number in [2, {MOST_CLASSES}], got {classes!r}.")
    if known_classes and classes != known_classes:
        raise ValueError(f"predictions.num_classes must stay {known_classes}, as reported first, got {classes}.")
    rows = np.empty((NUM_ROWS, batch_size), np.float32)
    for row, name, values in zip(rows, Predictions._fields, given, strict=False):
        array = _on_host(values)
        if array.shape != row.shape:
            raise ValueError(f"predictions.{name} must have shape {row.shape}, as the losses, got {array.shape}.")
        row[:] = array
    for row, name, least in zip(rows[1:], Predictions._fields[1:], (0, UNLABELLED), strict=False):
        if not bool(((row >= least) & (row < classes) & (row == np.floor(row))).all()):
            raise ValueError(f"predictions.{name} must hold whole numbers in [{least}, {classes}), got {row!r}.")
    return PredictionRows(rows, int(classes))


def _on_host(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"predictions must hold real numbers, got {values!r}.")
    return array
