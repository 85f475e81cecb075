"""Kinds of reports: one loss a sample, one mean a batch, or means of parts of a batch."""

from __future__ import annotations

EXACT, WHOLE_BATCH = 1, 0
"""Part sizes that stand for a loss of every sample and for a mean of the whole batch."""


def source_of(part_size: int | None, batch_size: int) -> str:
    """Where estimates come from: "exact", "parts of 4", "batch means of 32" or, with None, "nothing yet"."""
    if part_size is None:
        return "nothing yet"
    if part_size == EXACT:
        return "exact"
    return f"batch means of {batch_size}" if part_size == WHOLE_BATCH else f"parts of {part_size}"


def check_kind(part_size: int, first: int | None) -> None:
    """Refuse reports of another kind than the first.

    Raises:
        ValueError: another kind was reported before.
    """
    if first is not None and part_size != first:
        kinds = {EXACT: "one loss per sample", WHOLE_BATCH: "one mean per batch"}
        old, new = (kinds.get(size, f"means of parts of {size}") for size in (first, part_size))
        raise ValueError(f"loss must stay of the kind reported first ({old}), got {new}.")
