"""Predictions: for each sample the losses with its own label and with another class, and the class predicted.

The other class is drawn once for each sample and stays for the whole run, so the mean of the loss with it shows how
high the loss of a wrong label would be in this very network; nobody's label is changed. See `verdict`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_CLASSES = 2**16 - 1
NUM_ROWS = 4
"""Numbers for each sample beside its loss, where they are packed for one copy from a device."""


class Predictions(NamedTuple):
    """What the logits of a batch say about its labels; arrays or tensors of any framework.

    Attributes:
        other_loss: float32[B], the cross entropy that each sample would have with the class `other_classes` gives it.
        predicted: int[B], the class of the highest logit.
        given: int[B], the label trained on.
        num_classes: C, in [2, 65535]; the same in all reports of a run.
        own_loss: float32[B], the cross entropy with the given label; None if the reported losses are that. They are
            not where labels are smoothed or classes are weighted.
    """

    other_loss: Any
    predicted: Any
    given: Any
    num_classes: int
    own_loss: Any = None

    @staticmethod
    def unpack(packed: ArrayLike, num_classes: int) -> tuple[NDArray[np.float32], Predictions]:
        """Undo `pack`: the losses and the predictions.

        Args:
            packed: float32[5, B].
            num_classes: C.

        Raises:
            ValueError: ``packed`` has another shape.
        """
        rows = np.asarray(packed, np.float32)
        if rows.ndim != 2 or len(rows) != 1 + NUM_ROWS:
            raise ValueError(f"packed must have shape ({1 + NUM_ROWS}, B), got {rows.shape}.")
        losses, own, other, predicted, given = rows
        return losses, Predictions(other, predicted.astype(np.int64), given.astype(np.int64), num_classes, own)

    def pack(self, losses: ArrayLike) -> NDArray[np.float32]:
        """float32[5, B] with the losses, for one copy: whole numbers up to 65,534 are exact in float32."""
        own = losses if self.own_loss is None else self.own_loss
        return np.stack([np.asarray(row, np.float32) for row in (losses, own, *self[:3])])


def mixed(values: Any, number: Callable[[int], Any] = np.uint32) -> Any:
    """A pseudo-random number in [0, 2**32) for each whole number, the same in every framework.

    Args:
        values: uint32 of numpy or JAX; or with ``number=int``, int64 of torch with values in [0, 2**32).
        number: The type of the constants.

    Source: the finalizer "lowbias32" of C. Wellons' Hash Prospector.
    """
    low = number(0xFFFFFFFF)
    # A product in int64 may overflow; its low 32 bits, the only ones used, are right all the same.
    values = (values ^ (values >> 16)) * number(0x7FEB352D) & low
    values = (values ^ (values >> 15)) * number(0x846CA68B) & low
    return values ^ (values >> 16)


def other_classes(given: NDArray[Any], indices: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """int64[B], the class that each sample is compared with: never its own, fixed by its index.

    Args:
        given: int[B], labels.
        indices: int[B], the samples.
        num_classes: C, >= 2.

    >>> other_classes(np.array([0, 0, 1, 1]), np.arange(4), 2)
    array([1, 1, 0, 0])
    """
    steps = mixed(np.asarray(indices).astype(np.uint32)).astype(np.int64) % (num_classes - 1)
    other: NDArray[np.int64] = (np.asarray(given).astype(np.int64) + 1 + steps) % num_classes
    return other


def predictions_of(logits: ArrayLike, targets: ArrayLike, indices: ArrayLike) -> Predictions:
    """The predictions of a batch from its logits, with numpy; ``torch`` and ``flax`` of this package have their own.

    Args:
        logits: float[B, C]; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C).
        indices: int[B], the samples, as drawn.

    Raises:
        ValueError: the shapes or dtypes are not these. Targets of several labels a sample, sequences of them, and real
            numbers have no single other class to compare with.

    >>> predictions_of([[2.0, 0.0, 0.0]], [0], [7]).other_loss.round(2)
    array([2.24], dtype=float32)
    """
    scores, given = np.asarray(logits), np.asarray(targets)
    check_shapes(scores.shape, given.shape, is_whole=given.dtype.kind in "iu")
    scores = scores.astype(np.float32)
    if scores.ndim == 1 or scores.shape[1] == 1:
        scores = np.stack([np.zeros(len(scores), np.float32), scores.reshape(-1)], 1)
    classes = scores.shape[1]
    if len(given) and not 0 <= given.min() <= given.max() < classes:
        raise ValueError(f"targets must be in [0, {classes}), got values from {given.min()} to {given.max()}.")
    given = given.astype(np.int64)
    rows = np.arange(len(given))
    highest = scores.max(1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        norm = (highest + np.log(np.exp(scores - highest).sum(1, keepdims=True)))[:, 0]
        own, other = norm - scores[rows, given], norm - scores[rows, other_classes(given, np.asarray(indices), classes)]
    return Predictions(other, scores.argmax(1), given, classes, own)


def check_shapes(logits: tuple[int, ...], targets: tuple[int, ...], *, is_whole: bool) -> None:
    """Raise ValueError unless logits and targets are those of a classification with one label a sample.

    Args:
        logits, targets: Their shapes.
        is_whole: Whether the targets are whole numbers.
    """
    if len(logits) not in (1, 2) or (len(logits) == 2 and len(targets) == 2) or len(logits) > 2:
        kind = "sequences of labels" if len(logits) > 2 else "several labels a sample"
        raise ValueError(
            f"logits must have shape (B, C) or (B,) with targets of shape (B,), got {logits} and {targets}: {kind} "
            "have no single other class to compare with; report the losses without predictions."
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
        rows: float32[4, B]: own loss, other loss, predicted class, given class.
        num_classes: C.
    """

    rows: NDArray[np.float32]
    num_classes: int


def read_predictions(given: Any, losses: NDArray[Any], known_classes: int) -> PredictionRows:
    """Check predictions and turn them into numbers.

    Args:
        given: `Predictions`, or what is no such thing.
        losses: float[B], the reported losses.
        known_classes: C of the reports before; 0 before the first.

    Raises:
        TypeError: it is no `Predictions`.
        ValueError: a length, a class or the number of classes is wrong.
    """
    if not isinstance(given, Predictions):
        raise TypeError(f"predictions must be Predictions, as predictions_of() makes them, got {given!r}.")
    classes = given.num_classes
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"predictions.num_classes must be a whole number in [2, {MOST_CLASSES}], got {classes!r}.")
    if known_classes and classes != known_classes:
        raise ValueError(f"predictions.num_classes must stay {known_classes}, as reported first, got {classes}.")
    own = losses if given.own_loss is None else given.own_loss
    rows = np.empty((NUM_ROWS, len(losses)), np.float32)
    for row, name, values in zip(rows, _NAMES, (own, *given[:3]), strict=True):
        array = _on_host(values)
        if array.shape != losses.shape:
            raise ValueError(f"predictions.{name} must have shape {losses.shape}, as the losses, got {array.shape}.")
        row[:] = array
    for row, name in zip(rows[2:], _NAMES[2:], strict=True):
        if not bool(((row >= 0) & (row < classes) & (row == np.floor(row))).all()):
            raise ValueError(f"predictions.{name} must be whole numbers in [0, {classes}), got {row!r}.")
    return PredictionRows(rows, int(classes))


_NAMES = ("own_loss", "other_loss", "predicted", "given")


def _on_host(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if "bfloat16" in str(values.dtype) else values
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"predictions must hold real numbers, got {values!r}.")
    return array
