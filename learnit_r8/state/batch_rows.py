"""The rows of a refused batch: what they hold, batches of some of them, and which of them are to blame.

A batch is a nest of arrays of any framework, numpy's or torch's tensors, and of other values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import kinds
from .tree import leaves, open_node

FAR = 50.0
"""How many times as large as elsewhere a value is that is worth a look; see `benchmarks/causes.py`."""

FIRST = ("0", "0.0", "0.0.0", "state")
"""What the first array of a batch is called, which needs no name."""


class Odd(NamedTuple):
    """Values of a batch that are not finite, or far larger than others.

    Attributes:
        key: Which array.
        rows: Its rows.
        at: Where in the first of them.
        value: "NaN", "Inf", or the number.
        is_finite: Whether it is a number.
        is_whole: Whether the array is one of whole numbers.
    """

    key: str
    rows: tuple[int, ...]
    at: tuple[int, ...]
    value: str
    is_finite: bool
    is_whole: bool = False

    @property
    def about(self) -> str:
        """What is said about the rows, after their names."""
        place = f" at {list(self.at)}" if self.at else ""
        # A place is no name: "1e4 of 0.0.1" would be read as a number.
        what = "of" if re.search("[^0-9.]", self.key) else "in part"
        return f"whose input holds {self.value}{place}" + ("" if self.key in FIRST else f" {what} {self.key}")


def num_rows(batch: Any) -> int:
    """Rows of a batch: the first dimension of its first array; 0 without any, and where a tensor is sparse: all rows of
    a graph belong together.
    """
    arrays = [each for _, each in leaves(batch) if getattr(each, "ndim", 0)]
    return 0 if any(map(_is_sparse, arrays)) else next(map(len, arrays), 0)


def some_rows(batch: Any, rows: Sequence[int], size: int) -> Any:
    """A batch of some rows of another.

    Args:
        batch: The batch.
        rows: Which.
        size: Rows of the batch; what has another length is left as it is.
    """
    if hasattr(batch, "ndim"):
        return batch[np.asarray(rows, np.int64)] if batch.ndim and len(batch) == size else batch
    node = open_node(batch)
    if node is None:
        return batch
    parts = list(node.parts.values())
    if lists_rows(node, size):
        return node.build([parts[row] for row in rows])
    return node.build([some_rows(part, rows, size) for part in parts])


def lists_rows(node: Any, size: int) -> bool:
    """Whether a container is a list with an entry for each row, such as their names."""
    is_list = node.kind in ("list", "tuple") and len(node.parts) == size
    return is_list and not any(hasattr(each, "ndim") for _, each in leaves(list(node.parts.values())))


def not_finite(batch: Any, good: Any = None) -> list[Odd]:
    """Arrays of floats that are not finite, and are so in no good batch."""
    meant = set() if good is None else {key for key, each in _numbers(good) if not np.isfinite(each).all()}
    found = []
    for key, each in _numbers(batch):
        bad = ~np.isfinite(each)
        if key not in meant and bad.any():
            at = np.argwhere(bad)[0].tolist()
            found.append(Odd(key, rows_of(bad), tuple(at[1:]), "NaN" if np.isnan(each[tuple(at)]) else "Inf", False))
    return found


def far_off(batch: Any, good: Any = None) -> list[Odd]:
    """Arrays with values that are far larger than all of those of a good batch; without one, than in most rows."""
    usual, found = dict(_numbers(good)) if good is not None else None, []
    for key, each in _numbers(batch):
        if not each.ndim or not each.size or not np.isfinite(each).all():
            continue
        sizes = np.abs(each.astype(np.float64))
        if usual is None:
            rows_most = sizes.reshape(len(each), -1).max(1)
            # Most rows of a label may be 0.
            most = float(np.median(rows_most[rows_most > 0])) if rows_most.any() else 0.0
        elif key in usual and usual[key].size:
            most = float(np.abs(usual[key].astype(np.float64)).max())
        else:
            continue
        bad = sizes > (FAR * max(most or 1.0, 1e-6) if math.isfinite(most) else math.inf)
        rows = rows_of(bad)
        if rows and (usual is not None or len(rows) <= len(each) // 2):
            at = np.argwhere(bad)[0].tolist()
            value = f"{float(each[tuple(at)]):.4g}"
            found.append(Odd(key, rows, tuple(at[1:]), value, True, each.dtype.kind in "iu"))
    return found


def halve(is_bad: Callable[[list[int]], bool], size: int) -> tuple[tuple[int, ...], int]:
    """Find a row to blame by halving the batch.

    Args:
        is_bad: Whether a batch of these rows goes wrong.
        size: Rows of the whole batch, which does.

    Returns:
        The row, or none where no row alone goes wrong; and how often it was asked.
    """
    rows, runs = list(range(size)), 1
    while len(rows) > 1:
        half = rows[: len(rows) // 2]
        runs += 1
        rows = half if is_bad(half) else rows[len(rows) // 2 :]
    return tuple(rows) if rows and is_bad(rows) else (), runs


def rows_of(bad: NDArray[np.bool_]) -> tuple[int, ...]:
    """The rows in which a mask is true."""
    return tuple(np.flatnonzero(bad.reshape(len(bad), -1).any(1)).tolist()) if bad.ndim else ()


def _numbers(batch: Any) -> list[tuple[str, NDArray[Any]]]:
    found = [(key, each) for key, each in leaves(batch) if hasattr(each, "dtype")]
    arrays = [(key, _as_array(each)) for key, each in found if not _is_sparse(each)]
    return [(key, each) for key, each in arrays if each.dtype.kind in "fiu"]


def _is_sparse(each: Any) -> bool:
    return bool(kinds.is_tensor(each) and kinds.kind_of(each) != "dense")


def _as_array(each: Any) -> NDArray[Any]:
    if not kinds.is_tensor(each):
        return np.asarray(each)
    each = each.detach()
    return kinds.to_numpy(each) if each.is_floating_point() else np.asarray(each.cpu())
