"""The rows of a batch: what they hold, batches of some of them, and which of them are to blame."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ...checkpoint.tree import leaves, open_node
from ...events.incident import INPUT_HOLDS

FAR = 50.0
"""How many times as large as in a good batch a value is that is worth a look."""


FIRST = ("0", "0.0", "0.0.0", "state")
"""What the first array of a batch is called, which needs no name."""


class Odd(NamedTuple):
    """Values of a batch that are not finite, or far larger than those of a good one.

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
        return f"{INPUT_HOLDS} {self.value}{place}" + ("" if self.key in FIRST else f" of {self.key}")


def num_rows(batch: Any) -> int:
    """Rows of a batch: the first dimension of its first tensor; 0 without any."""
    sizes = [len(each) for _, each in leaves(batch) if isinstance(each, torch.Tensor) and each.ndim]
    return sizes[0] if sizes else 0


def some_rows(batch: Any, rows: Sequence[int], size: int) -> Any:
    """A batch of some rows of another.

    Args:
        batch: A nest of tensors and other values.
        rows: Which.
        size: Rows of the batch; what has another length is left as it is.
    """
    if isinstance(batch, torch.Tensor):
        if batch.ndim and len(batch) == size:
            return batch[torch.tensor(list(rows), device=batch.device)]
        return batch
    node = open_node(batch)
    if node is None:
        return batch
    parts = list(node.parts.values())
    if _lists_rows(node, size):
        return node.build([parts[row] for row in rows])
    return node.build([some_rows(part, rows, size) for part in parts])


def not_finite(batch: Any, good: Any) -> list[Odd]:
    """Arrays of floats that are not finite, and are so in no good batch."""
    meant = {key for key, each in _floats(good) if not bool(torch.isfinite(each).all())} if good is not None else set()
    found = []
    for key, each in _floats(batch):
        if key in meant:
            continue
        bad = ~torch.isfinite(each)
        if bool(bad.any()):
            place = bad.nonzero()[0].tolist()
            value = "NaN" if bool(torch.isnan(each[tuple(place)])) else "Inf"
            found.append(Odd(key, _rows_of(bad), tuple(place[1:]), value, False))
    return found


def far_off(batch: Any, good: Any) -> list[Odd]:
    """Arrays with values that are far larger than all of those of a good batch."""
    usual = dict(_numbers(good)) if good is not None else {}
    found = []
    for key, each in _numbers(batch):
        other = usual.get(key)
        if other is None or not other.numel() or not each.ndim or not bool(torch.isfinite(each).all()):
            continue
        limit = FAR * max(float(other.abs().max()), 1e-6)
        if not math.isfinite(limit):
            continue
        bad = each.abs() > limit
        if bool(bad.any()):
            place = bad.nonzero()[0].tolist()
            value = f"{float(each[tuple(place)]):.4g}"
            found.append(Odd(key, _rows_of(bad), tuple(place[1:]), value, True, not each.is_floating_point()))
    return found


def halve(is_bad: Callable[[list[int]], bool], size: int, most_runs: int) -> tuple[tuple[int, ...], int]:
    """Find a row to blame by halving the batch.

    Args:
        is_bad: Whether a batch of these rows goes wrong.
        size: Rows of the whole batch, which does.
        most_runs: How often it may be asked.

    Returns:
        The row, or none where no row alone goes wrong; and how often it was asked.
    """
    rows, runs = list(range(size)), 0
    while len(rows) > 1 and runs < most_runs - 1:
        half = rows[: len(rows) // 2]
        runs += 1
        rows = half if is_bad(half) else rows[len(rows) // 2 :]
    if len(rows) != 1 or not is_bad(rows):
        return (), runs + 1
    return tuple(rows), runs + 1


def join(one: Any, other: Any) -> Any:
    """A batch of the rows of two; None where their rows have other shapes."""
    sizes = num_rows(one), num_rows(other)
    with contextlib.suppress(AttributeError, RuntimeError, TypeError, ValueError):
        return _joined(one, other, sizes)
    return None


def _joined(one: Any, other: Any, sizes: tuple[int, int]) -> Any:
    if isinstance(one, torch.Tensor):
        has_rows = one.ndim and (len(one), len(other)) == sizes
        return torch.cat([one, other]) if has_rows else one
    node, another = open_node(one), open_node(other)
    if node is None or another is None:
        return one
    if _lists_rows(node, sizes[0]) and _lists_rows(another, sizes[1]):
        return node.build([*node.parts.values(), *another.parts.values()])
    return node.build([_joined(a, b, sizes) for a, b in zip(node.parts.values(), another.parts.values(), strict=True)])


def _lists_rows(node: Any, size: int) -> bool:
    """Whether a container is a list with an entry for each row, such as their names."""
    is_list = node.kind in ("list", "tuple") and len(node.parts) == size
    return is_list and not any(isinstance(each, torch.Tensor) for _, each in leaves(list(node.parts.values())))


def _rows_of(bad: torch.Tensor) -> tuple[int, ...]:
    if bad.ndim == 0:
        return ()
    return tuple(bad.reshape(len(bad), -1).any(1).nonzero().reshape(-1).tolist())


def _floats(batch: Any) -> list[tuple[str, torch.Tensor]]:
    return [(key, each) for key, each in _numbers(batch) if each.is_floating_point()]


def _numbers(batch: Any) -> list[tuple[str, torch.Tensor]]:
    found = [(key, each.detach()) for key, each in leaves(batch) if isinstance(each, torch.Tensor)]
    return [(key, each) for key, each in found if each.dtype is not torch.bool and not each.is_complex()]
