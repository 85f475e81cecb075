"""The size of the user's batch: read from it, or told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...sources.chunk import Size
from ...state.tree import clone, leaves

TOKEN_NAMES = ("input_ids", "tokens", "ids")
"""Names under which a batch of text holds its tokens."""

MOST_KEPT_BYTES, SMALL_BYTES = 2**26, 2**20
"""Largest batch that is kept to be handed out again; and the largest that is kept only in case its loss explodes."""

Told = int | Callable[[Any], int] | None


class BatchMeasure:
    """Reads the size of batches.

    Args:
        size: Samples in a batch, or a function of it; None to read the first dimension of its first array.
        tokens: Tokens in a batch, or a function of it; None to count what a batch holds under one of `TOKEN_NAMES`.
        needs_tokens: Whether the budget is in tokens, so that their number must be known.
        tell_unknown: Called the first time that a size cannot be read.

    Raises:
        TypeError: ``size`` or ``tokens`` is neither a number nor a function.

    >>> import numpy as np
    >>> BatchMeasure(tell_unknown=print).of({"input_ids": np.zeros((4, 128)), "labels": np.zeros(4)})
    Size(samples=4, tokens=512)
    """

    def __init__(
        self, size: Told = None, tokens: Told = None, *, needs_tokens: bool = False, tell_unknown: Callable[[str], None]
    ) -> None:
        for name, told in (("size", size), ("tokens", tokens)):
            if not (told is None or callable(told) or (type(told) is int and told >= 1)):
                raise TypeError(f"{name} must be a whole number >= 1, a function of a batch, or None, got {told!r}.")
        self._size, self._tokens, self._needs_tokens, self._tell = size, tokens, needs_tokens, tell_unknown

    def of(self, item: Any) -> Size:
        """The size of a batch.

        Raises:
            ValueError: the budget needs the tokens of a batch, and they cannot be read; or a size is not a number.
        """
        samples = _told("size", self._size, item) if self._size is not None else read_size(item)
        if samples is None:
            self._tell(
                f"the size of a batch could not be read from a {type(item).__name__}, so each counts as one sample; "
                "give batches(..., size=), a number or a function of a batch."
            )
            samples = 1
        tokens: int | None = None
        if self._tokens is not None:
            tokens = _told("tokens", self._tokens, item)
        elif type(item) not in (tuple, list):
            tokens = _read_tokens(item)
        if tokens is None and self._needs_tokens:
            raise ValueError(
                f"tokens must be given where the budget is num_tokens and they cannot be read from a batch, got a "
                f"{type(item).__name__}; give batches(..., tokens=), a number or a function of a batch."
            )
        return Size(samples, tokens or 0)


def _told(name: str, told: Any, item: Any) -> int:
    value = told(item) if callable(told) else told
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
        raise ValueError(f"{name} must give a whole number >= 0, got {value!r}.")
    return int(value)


def read_size(item: Any) -> int | None:
    """Samples in a batch: the first dimension of its first array; None if there is none.

    A batch is an array, or a nest of tuples, lists and dicts with one; a list without any is one of samples.
    """
    shape = getattr(item, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    is_list = isinstance(item, (tuple, list))
    is_dict = not is_list and (isinstance(item, Mapping) or (hasattr(item, "keys") and hasattr(item, "__getitem__")))
    parts = item if is_list else (item[key] for key in item.keys()) if is_dict else ()  # noqa: SIM118
    for each in parts:
        if (size := read_size(each)) is not None:
            return size
    return len(item) if isinstance(item, list) and item else None


def copied(item: Any) -> Any:
    """A copy of a batch, as a loop may change the one that it gets; the batch itself if it cannot be copied."""
    kind = type(item)
    if kind in (tuple, list):
        return kind(map(copied, item))
    if (kind.__module__, kind.__name__) == ("torch", "Tensor") and not item.requires_grad:
        # As nearly all are: to walk a small batch as a tree takes longer than to copy it.
        return item.clone()
    try:
        return clone(item)
    except Exception:
        return item


def shapes_of(item: Any) -> list[tuple[int, ...]]:
    """Shapes of the arrays in a batch, without their first dimension, as the last batch of an epoch may be short.

    >>> import numpy as np
    >>> shapes_of({"x": np.zeros((4, 128)), "y": np.zeros(4)})
    [(128,), ()]
    """
    return [tuple(getattr(each, "shape", ())[1:]) for _, each in leaves(item)]


def _read_tokens(item: Any) -> int | None:
    if not isinstance(item, Mapping):
        # Those of transformers are dicts of another kind; the data of a tensor would be another tensor.
        item = None if hasattr(item, "shape") else getattr(item, "data", None)
    if isinstance(item, Mapping):
        for name in TOKEN_NAMES:
            shape = getattr(item.get(name), "shape", None)
            if shape is not None:
                return math.prod(map(int, shape))
    return None
