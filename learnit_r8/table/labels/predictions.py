"""Predictions: for each label of a batch, what the model predicts and by how much it prefers that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_CLASSES = 2**16 - 1

UNLABELLED = -1
"""The class given to a sample that has no single label: an ignored one, or one whose labels are mixed."""

IGNORED = -100
"""The target that torch and Transformers leave out of a loss: no label either."""

NUM_ROWS = 3
"""Numbers for each label of a sample beside its loss."""

SURE = 20
"""Numbers that are not all positive, with rows that sum to one, by chance."""

PROBABILITIES = (
    "logits look like probabilities, as each row sums to 1: give what the model puts out before its softmax, as cross "
    "entropy takes another one. (Where the loss is made of probabilities, give their log.)"
)

KINDS = ("classes", "multilabel", "regression")

VALUES = 1
"""The number of classes of predictions that are numbers."""


class Predictions(NamedTuple):
    """What the outputs for a batch say about its labels; arrays or tensors of any framework.

    With P labels a sample (several labels, tokens, pixels) they are [B, P]; each label is a place of the sample.

    Attributes:
        margin: float32[B], the highest logit of the classes that are not the label minus that of the label: > 0 where
            the model predicts another class. Of numbers, the target minus the number predicted.
        predicted: int[B], the class of the highest logit; or float32[B], the number predicted.
        given: int[B], the label trained on; -1 where there is none, of which nothing is learned then. Of numbers,
            float32[B], and NaN.
        num_classes: C, in [2, 65535], or 1 where numbers are predicted; the same in all reports of a run.
    """

    margin: Any
    predicted: Any
    given: Any
    num_classes: int

    @staticmethod
    def unpack(packed: ArrayLike, num_classes: int) -> tuple[NDArray[np.float32], Predictions]:
        """Undo `pack`: the losses and the predictions.

        Args:
            packed: float32[4, B]; with P places a sample float32[1 + 3 P, B].
            num_classes: C.

        Raises:
            ValueError: ``packed`` has another shape.
        """
        rows = np.asarray(packed, np.float32)
        places, rest = divmod(len(rows) - 1, NUM_ROWS)
        if rows.ndim != 2 or rest or places < 1:
            raise ValueError(f"packed must have shape (1 + {NUM_ROWS} P, B), got {rows.shape}.")
        margin, predicted, given = rows[1:] if places == 1 else rows[1:].reshape(NUM_ROWS, places, -1).swapaxes(1, 2)
        if num_classes != VALUES:
            predicted, given = predicted.astype(np.int64), given.astype(np.int64)
        return rows[0], Predictions(margin, predicted, given, num_classes)

    def pack(self, losses: ArrayLike) -> NDArray[np.float32]:
        """float32[1 + 3 P, B] with the losses, for one copy; classes up to 65,534 are exact in float32."""
        own = np.asarray(losses, np.float32)
        return np.stack(
            [own, *(row for part in self[:3] for row in np.asarray(part, np.float32).T.reshape(-1, len(own)))]
        )


def predictions_of(
    logits: ArrayLike, targets: ArrayLike, kind: str = "classes", *, axis: int | None = None
) -> Predictions:
    """The predictions of a batch, with numpy; ``torch`` has its own, and so have ``keras`` and ``flax`` for classes.

    Args:
        logits: By ``kind``. "classes": float[B, C], or log probabilities; or float[B] or float[B, 1], the logit of
            class 1 of two; of tokens or pixels float[B, ..., C] or float[B, C, ...]. "multilabel": float[B, ...], a
            logit for each label that a sample may have (also of masks of one class). "regression": float[B] or
            float[B, 1], the numbers predicted.
        targets: "classes": int[B] or int[B, ...], classes in [0, C). "multilabel": 0 or 1, of the shape of the logits.
            "regression": float[B] or float[B, 1]. What has no label is -1 or -100, of numbers NaN.
        kind: What the labels are.
        axis: The axis of the classes of tokens or pixels, where both the second and the last may be that.

    Raises:
        ValueError: the shapes or dtypes are not these, or ``kind`` is unknown.

    >>> predictions_of([[2.0, 0.0, 0.5], [2.0, 0.0, 0.5]], [0, 1]).margin
    array([-1.5,  2. ], dtype=float32)
    >>> predictions_of([[2.0, -1.0, 3.0]], [[1, 1, 0]], "multilabel").margin
    array([[-2.,  1.,  3.]], dtype=float32)
    """
    scores, given = np.asarray(logits), np.asarray(targets)
    class_axis = layout(kind, scores.shape, given.shape, is_whole=given.dtype.kind in "iub", axis=axis)
    scores = scores.astype(np.float32)
    if class_axis == 1 and kind == "classes":
        check_logits(scores)
    if kind == "regression":
        given, scores = (each.reshape(-1).astype(np.float32) for each in (given, scores))
        return Predictions(given - scores, scores, given, VALUES)
    is_single = class_axis is None or scores.ndim == 2
    if kind == "multilabel":
        # int64[...], 0, 1, or -1 where there is no label.
        known = np.where((given == IGNORED) | (given != given), UNLABELLED, given)
        if not np.isin(known, (UNLABELLED, 0, 1)).all():
            raise ValueError(f"targets must be 0 or 1, or -1 where there is no label, got {given!r}.")
        given, flat = known.astype(np.int64).reshape(len(given), -1), scores.reshape(len(scores), -1)
        margin = np.where(given == 1, -flat, flat)
        return Predictions(margin, (flat > 0).astype(np.int64), given, 2)
    if scores.ndim == 1 or scores.shape[1:] == (1,):
        scores = np.stack([np.zeros(len(scores), np.float32), scores.reshape(-1)], 1)
    elif not is_single:
        scores = np.moveaxis(scores, class_axis or -1, -1)
    classes = scores.shape[-1]
    given, scores = given.astype(np.int64).reshape(len(given), -1), scores.reshape(len(scores), -1, classes)
    given[given == IGNORED] = UNLABELLED
    check_range(given, classes)
    predicted, own = scores.argmax(-1), given.clip(0)[..., None]
    margin = -np.take_along_axis(scores, own, -1)[..., 0]
    np.put_along_axis(scores, own, -np.inf, -1)
    with np.errstate(invalid="ignore"):
        margin += scores.max(-1)
    found = (margin[:, 0], predicted[:, 0], given[:, 0]) if is_single else (margin, predicted, given)
    return Predictions(*found, classes)


def check_logits(scores: NDArray[np.float32]) -> None:
    """Warn if float[B, C, ...] look like what a softmax puts out: all positive, and each row sums to one."""
    # Of most batches of logits one number is looked at, and of nearly all no more than three.
    size, number = scores.size, scores.item
    is_odd = size >= SURE and 0 < number(0) < 1 and 0 < number(size // 2) < 1 and 0 < number(-1) < 1
    if is_odd and (scores > 0).all() and np.abs(scores.sum(1) - 1).max() < 0.01:
        from ...events.caller import warn

        warn(PROBABILITIES)


def check_range(given: Any, num_classes: int) -> None:
    """Raise ValueError unless all targets are classes, or -1: int[B], an array or a tensor on the host."""
    lowest, highest = (int(given.min()), int(given.max())) if len(given) else (0, 0)
    if not UNLABELLED <= lowest <= highest < num_classes:
        two = "; logits of one number a sample are of two classes, give one for each class" if num_classes == 2 else ""
        raise ValueError(f"targets must be in [0, {num_classes}), got values from {lowest} to {highest}{two}.")


def layout(
    kind: str, logits: tuple[int, ...], targets: tuple[int, ...], *, is_whole: bool, axis: int | None = None
) -> int | None:
    """Check the shapes of a kind of labels; returns the axis of the classes, None where there is none.

    Args:
        kind: One of `KINDS`.
        logits, targets: Their shapes.
        is_whole: Whether the targets are whole numbers, or bools.
        axis: As for `predictions_of`.

    Raises:
        ValueError: as for `predictions_of`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "multilabel":
        if len(logits) < 2 or logits != targets:
            raise ValueError(
                f"logits and targets of several labels must have the same shape (B, ...), got {logits} and {targets}."
            )
        return None
    if kind == "regression":
        if logits not in ((n := targets[:1]), (*n, 1)) or targets not in (n, (*n, 1)) or not n:
            raise ValueError(
                f"logits and targets of a regression must have shape (B,) or (B, 1), got {logits} and {targets}."
            )
        return None
    if len(logits) < 3:
        check_shapes(logits, targets, is_whole=is_whole)
        return 1 if len(logits) == 2 else None
    ends = [place for place in (1, len(logits) - 1) if logits[:place] + logits[place + 1 :] == targets]
    if axis is not None:
        ends = [place for place in ends if place == axis % len(logits)]
    if not ends:
        where = "" if axis is None else f" with axis={axis}"
        raise ValueError(
            f"logits must have shape (B, ..., C) or (B, C, ...) with targets of shape (B, ...){where}, got {logits} "
            f"and {targets}; give kind='multilabel' for one logit a label."
        )
    if len(ends) == 2 and len(logits) > 2:
        raise ValueError(
            f"axis must say where the classes are, 1 or -1: both fit logits of shape {logits} and targets of shape "
            f"{targets}."
        )
    if not is_whole:
        raise ValueError("targets must be whole numbers, the classes.")
    if not 2 <= logits[ends[0]] <= MOST_CLASSES:
        raise ValueError(
            f"logits must have 2 to {MOST_CLASSES} classes, got {logits[ends[0]]}; give kind='multilabel' for one "
            "logit a label, with targets of its shape."
        )
    return ends[0]


def check_shapes(logits: tuple[int, ...], targets: tuple[int, ...], *, is_whole: bool) -> None:
    """Raise ValueError unless logits and targets are those of a classification with one label a sample.

    Args:
        logits, targets: Their shapes.
        is_whole: Whether the targets are whole numbers.
    """
    if len(logits) not in (1, 2) or (len(logits) == 2 and len(targets) == 2):
        kind = "tokens or pixels" if len(logits) > 2 else "several labels a sample"
        one_hot = " Of one-hot targets give targets.argmax(1)." if targets == logits else ""
        raise ValueError(
            f"logits must have shape (B, C) or (B,) with targets of shape (B,), got {logits} and {targets}: with "
            f"{kind}, no single class is predicted; report predictions_of(logits, targets, kind) with the losses, kind "
            f'"classes" for tokens and pixels, or "multilabel".{one_hot}'
        )
    if len(targets) != 1 or targets[0] != logits[0]:
        swapped = " Logits come first, then targets." if len(logits) == 1 and len(targets) == 2 else ""
        raise ValueError(f"targets must have shape ({logits[0]},), one class a sample, got {targets}.{swapped}")
    if not is_whole:
        raise ValueError(
            "targets must be whole numbers, the classes; for numbers report predictions_of(outputs, targets, "
            '"regression") with the losses.'
        )
    if len(logits) == 2 and logits[1] > MOST_CLASSES:
        raise ValueError(f"logits must have at most {MOST_CLASSES} classes, got {logits[1]}.")


class PredictionRows(NamedTuple):
    """Checked predictions of a batch.

    Attributes:
        rows: float32[3 P, B]: margins of the P places, then predicted and then given classes.
        num_classes: C.
    """

    rows: NDArray[np.float32]
    num_classes: int

    @property
    def num_places(self) -> int:
        """P, labels that a sample has."""
        return len(self.rows) // NUM_ROWS


def joined(
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """int64[M] and float32[3 P, M], the samples of several batches and what is said of them; None without any.

    Args:
        parts: The same of each batch; what a shorter one lacks has no label.
    """
    known, wide = list(parts), []
    widest = max((len(rows) for _, rows in known), default=0) // NUM_ROWS
    for _, rows in known:
        each = rows.reshape(NUM_ROWS, -1, rows.shape[1])
        if each.shape[1] < widest:
            each = np.pad(each, ((0, 0), (0, widest - each.shape[1]), (0, 0)), constant_values=UNLABELLED)
        wide.append(each.reshape(-1, rows.shape[1]))
    return (np.concatenate([indices for indices, _ in known]), np.concatenate(wide, axis=1)) if known else None


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
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or not 1 <= classes <= MOST_CLASSES:
        raise ValueError(f"predictions.num_classes must be a whole number in [1, {MOST_CLASSES}], got {classes!r}.")
    if known_classes and classes != known_classes:
        raise ValueError(
            f"predictions.num_classes must stay {known_classes}, as reported first, got {classes}. Call "
            "table.forget_labels() first if labels now mean something else."
        )
    arrays = [on_host(values) for values in given[:3]]
    for values, array in zip(given[:3], arrays, strict=True):
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise TypeError(f"predictions must hold real numbers, got {values!r}.")
    shape = arrays[0].shape if arrays[0].ndim == 2 and arrays[0].shape[1] else (batch_size,)
    for name, array in zip(Predictions._fields, arrays, strict=False):
        if array.shape != shape or len(array) != batch_size:
            raise ValueError(
                f"predictions.{name} must have shape {(batch_size, *shape[1:])}, as the losses, got {array.shape}."
            )
    rows = np.concatenate([array.T.reshape(-1, batch_size) for array in arrays], dtype=np.float32)
    if classes == VALUES:
        return PredictionRows(rows, VALUES)
    parts = rows.reshape(NUM_ROWS, -1)[1:]
    for part, name, least in zip(parts, Predictions._fields[1:], (0, UNLABELLED), strict=False):
        if not bool(((part >= least) & (part < classes) & (part == np.floor(part))).all()):
            raise ValueError(f"predictions.{name} must hold whole numbers in [{least}, {classes}), got {part!r}.")
    return PredictionRows(rows, int(classes))


def on_host(values: Any) -> NDArray[Any]:
    """Numbers as an array; also tensors of torch, TensorFlow or JAX on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # numpy has no bfloat16; torch refuses to convert it.
        values = values.float() if "bfloat16" in str(values.dtype) else values
    return np.asarray(values)
