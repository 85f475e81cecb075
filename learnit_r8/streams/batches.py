"""Batches of tensors that lie in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .._validation import whole_number

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 8_000_000
"""Shuffled rows are gathered for several batches at once, up to this size: one gather costs as much as ten views."""


def iter_batches(
    *tensors: torch.Tensor,
    batch_size: int = 1,
    shuffle: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Go once through rows that belong together.

    Args:
        *tensors: [N, ...] each; row i of one belongs to row i of the others.
        batch_size: B, rows in a batch, >= 1; the last batch may have fewer.
        shuffle: Whether in a random order.
        generator: Where the order is drawn from; by default torch's global one.

    Returns:
        An iterator over tuples, [B, ...] of each tensor.

    Raises:
        ValueError: no tensors, no rows, unequal lengths, or a batch size below 1.
        TypeError: one is not a tensor.
    """
    count = check_rows(tensors)
    size = whole_number("batch_size", batch_size, least=1)
    return shuffled(tensors, count, size, generator) if shuffle else in_order(tensors, size)


def check_rows(tensors: Sequence[Any], name: str = "tensors") -> int:
    """N, the rows that all of these tensors have; ValueError or TypeError, naming the argument, if they do not."""
    import torch

    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be torch tensors, got {type(tensor).__name__}.")
    lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if not lengths or min(lengths) < 1 or min(lengths) != max(lengths):
        raise ValueError(f"{name} must have the same number of rows, at least 1, got {lengths}.")
    return lengths[0]


def in_order(tensors: Sequence[torch.Tensor], size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of consecutive rows, as views."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)  # type: ignore[no-untyped-call]


def shuffled(
    tensors: Sequence[torch.Tensor], count: int, size: int, generator: torch.Generator | None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches in a random order: every row once."""
    import torch

    source = generator.device if generator is not None else tensors[0].device
    order = torch.randperm(count, generator=generator, device=source)
    row_bytes = sum(tensor.element_size() * tensor[0].numel() for tensor in tensors)
    chunk = max(1, CHUNK_BYTES // max(1, row_bytes * size)) * size
    for rows in order.split(chunk):  # type: ignore[no-untyped-call]
        yield from in_order([tensor.index_select(0, rows.to(tensor.device)) for tensor in tensors], size)
