"""Reported losses: floats, arrays and tensors of any framework are read as numbers, without keeping a graph alive."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..events.caller import warn
from .labels.predictions import PredictionRows, on_host

EXACT, WHOLE_BATCH = 1, 0
"""Part sizes that stand for one loss per sample and for one mean per batch."""


class Reading(NamedTuple):
    """A reported loss as numbers.

    Attributes:
        mean: Mean over the samples of the batch.
        means: The same, or float64[P] for its consecutive parts.
        part_size: EXACT, WHOLE_BATCH or the size of a part.
        lowest: The smallest of the means.
        predictions: What was reported with them; None if nothing was.
    """

    mean: float
    means: float | NDArray[np.float64]
    part_size: int
    lowest: float
    predictions: PredictionRows | None = None


def read_loss(loss: Any, batch_size: int, part_size: int | None = None) -> Reading:
    """Turn a reported loss into numbers.

    Args:
        loss: A number or 0-dim array or tensor, the batch mean; or a vector, one loss for each sample, or with
            ``part_size`` for each part.
        batch_size: B, samples in the batch.
        part_size: Samples in a part, >= 1; the last part may have fewer.

    Raises:
        TypeError: the loss is not a real number or a vector of them.
        ValueError: the vector has another length, or ``part_size`` is below 1.
    """
    if type(loss) is float and part_size is None:
        return Reading(loss, loss, WHOLE_BATCH, loss)
    if part_size is not None:
        if isinstance(part_size, bool) or not isinstance(part_size, (int, np.integer)) or part_size < 1:
            raise ValueError(f"part_size must be a whole number >= 1, got {part_size!r}.")
        part_size = int(part_size)
    values = _as_array(loss)
    if values.ndim == 0 and part_size is None:
        mean = float(values)
        return Reading(mean, mean, WHOLE_BATCH, mean)
    size = part_size or 1
    parts = -(-batch_size // size)
    if values.ndim == 0 and parts == 1:
        values = values.reshape(1)
    if values.shape != (parts,):
        each = f"part of {size} samples" if part_size else f"of the {batch_size} samples"
        what = f"one {'mean' if part_size else 'loss'} for each {each}"
        advice = ""
        if values.shape == (parts, 1):
            advice = " Add .squeeze(1)."
        elif values.shape == (parts, parts):
            advice = f" Were outputs ({parts}, 1) and targets ({parts},) broadcast? outputs[:, 0] gives both one shape."
        elif values.ndim > 1 and values.shape[0] == parts:
            axes = 1 if values.ndim == 2 else tuple(range(1, values.ndim))
            advice = f" Average several losses of a sample with .mean({axes}); class scores are not losses."
        raise ValueError(f"loss must be a number or have shape ({parts},), {what}, got shape {values.shape}.{advice}")
    last = batch_size - (parts - 1) * size
    # The sum of infinities of both signs is NaN, as it should be, without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.add.reduce(values) if size == EXACT else np.add.reduce(values[:-1]) * size + values[-1] * last
    return Reading(float(total) / batch_size, values, size, float(values.min()))


def read_mean(loss: Any) -> Reading:
    """Turn a reported loss into its mean, where it is not known how many samples there are.

    Args:
        loss: A number, or an array or tensor of any shape, of which the mean is taken.

    Raises:
        TypeError: the loss is not a real number or an array of them.
        ValueError: it is empty.
    """
    values = _as_array(loss)
    if not values.size:
        raise ValueError(f"loss must be a number or an array of numbers, got shape {values.shape}.")
    mean = float(values) if values.ndim == 0 else _mean(values)
    return Reading(mean, mean, WHOLE_BATCH, mean)


def read_rows(loss: Any, rows: int, counts: NDArray[np.int64] | None, kind: int | None) -> Reading:
    """Turn the reported loss of a batch of the user's, whose samples are known, into numbers.

    Args:
        loss: A number; an array or tensor with a value, or several, for each row; or of any other shape, of which the
            mean is taken.
        rows: Rows of the batch.
        counts: int64[rows], samples in each row, where there are several in one.
        kind: The kind of report that the table learns from, fixed by the first: WHOLE_BATCH for means, other numbers
            for losses of rows; None before.

    Returns:
        The loss, with one mean for each row unless that is not known or the table learns from means of batches. Its
        part size is EXACT where each row is one sample, else the samples that a row has on average.

    Raises:
        TypeError: the loss is not a real number or an array of them.
        ValueError: it is empty.
    """
    if kind == WHOLE_BATCH:
        return read_mean(loss)
    values = _as_array(loss)
    if not values.ndim or len(values) != rows or not values.size:
        return read_mean(values)
    means = values.reshape(rows, -1).mean(axis=1)
    size = kind if kind is not None else EXACT if counts is None else max(2, round(float(counts.mean())))
    return Reading(_mean(values), means, size, float(means.min()))


def _mean(values: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.add.reduce(values.reshape(-1))) / values.size


def read_number(name: str, value: Any) -> float:
    """Read a number, or a 0-dim array or tensor, as a float; ``name`` is used in errors.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is more than one number.
    """
    array = _as_array(value, name)
    if array.ndim:
        raise ValueError(f"{name} must be one number, got shape {array.shape}.")
    return float(array)


def _as_array(loss: Any, name: str = "loss") -> NDArray[np.float64]:
    """Convert to a float64 array of any shape, also from tensors of torch, TensorFlow or JAX on any device."""
    try:
        array = loss if isinstance(loss, np.ndarray) else on_host(loss)
    except ValueError as error:
        raise ValueError(f"{name} must be a number or a vector of them, got {loss!r}.") from error
    if array.dtype.kind not in "fiu" and array.dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        raise TypeError(f"{name} must be a real number, or an array or tensor of them, got {loss!r}.")
    return array.astype(np.float64)


FEWEST_SIGNS = 10
"""Losses that a batch has at least where their signs are looked at."""

SIGNED = (
    "the losses of the first batch are below 0 as well as above: if they are errors (outputs - targets), report their "
    "squares, as higher means harder to R8; of densities, rewards and the like, ignore this."
)


def check_signs(losses: float | NDArray[np.float64]) -> None:
    """Warn if what was reported first may be errors: a quarter of them or more on either side of 0."""
    signs = np.sign(losses)
    if signs.size >= FEWEST_SIGNS and 4 * min((signs < 0).sum(), (signs > 0).sum()) >= signs.size:
        warn(SIGNED)


def source_of(part_size: int | None, batch_size: int) -> str:
    """The source of estimates: "exact", "parts of 4", "batch means of 32" or, with None, "nothing yet"."""
    if part_size is None:
        return "nothing yet"
    if part_size == EXACT:
        return "exact"
    return f"batch means of {batch_size}" if part_size == WHOLE_BATCH else f"parts of {part_size}"


def check_kind(part_size: int, first: int | None) -> None:
    """Check that a report is of the same kind as the first.

    Raises:
        ValueError: another kind was reported before.
    """
    if first is not None and part_size != first:
        kinds = {EXACT: "one loss per sample", WHOLE_BATCH: "one mean per batch"}
        old, new = (kinds.get(size, f"means of parts of {size}") for size in (first, part_size))
        raise ValueError(f"loss must be of the kind reported first ({old}), got {new}.")
