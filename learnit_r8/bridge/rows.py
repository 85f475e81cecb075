"""Rows of a data set: arrays, anything with a length and an index, and nests of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def take_rows(data: Any, indices: NDArray[np.int64], take: Callable[[Any, Any], Any] | None = None) -> Any:
    """The same nest with ``indices`` taken from every leaf.

    Args:
        data: An array or tensor; anything with ``__len__`` and ``__getitem__``, whose items are stacked; or a list,
            tuple or dict of those. A list of plain numbers or texts is one column.
        indices: int64[B].
        take: ``(column, indices)``, takes the rows of one leaf; by default they become numpy arrays.
    """
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {name: take_rows(value, indices, take) for name, value in data.items()}
    if is_nest(data):
        return tuple(take_rows(value, indices, take) for value in data)
    return _as_arrays(data, indices) if take is None else take(data, indices)


def _as_arrays(data: Any, indices: NDArray[np.int64]) -> Any:
    if hasattr(data, "iloc"):
        return data.iloc[indices].to_numpy()
    if isinstance(data, np.ndarray):
        return data[indices]
    if hasattr(data, "numpy"):
        # A tensor of TensorFlow, torch or JAX in main memory is seen as an array without a copy.
        return np.asarray(data)[indices]
    return np.stack([np.asarray(data[index]) for index in indices.tolist()])


def is_nest(data: Any) -> bool:
    """Whether a list or tuple holds columns, and is not one itself."""
    return (
        isinstance(data, (list, tuple)) and bool(data) and hasattr(data[0], "__len__") and not isinstance(data[0], str)
    )


def leaves(name: str, data: Any) -> list[tuple[str, Any]]:
    """The columns of a nest, with names for messages."""
    if data is None:
        return []
    if isinstance(data, Mapping):
        return [leaf for key, value in data.items() for leaf in leaves(f"{name}[{key!r}]", value)]
    if is_nest(data):
        return [leaf for key, value in enumerate(data) for leaf in leaves(f"{name}[{key}]", value)]
    return [(name, data)]


def check_rows(name: str, data: Any, num_samples: int) -> None:
    """Raise unless every column of a nest has a length, and the right one.

    Raises:
        TypeError: a column has no length or no index.
        ValueError: a column of another length.
    """
    for column, value in leaves(name, data):
        if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
            raise TypeError(f"{column} must have a length and an index, got {value!r}.")
        if len(value) != num_samples:
            raise ValueError(f"{column} must have the scheduler's {num_samples} samples, got {len(value)}.")
