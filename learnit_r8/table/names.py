"""The user's names of samples, and group labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def checked_ids(sample_ids: Any, num_samples: int) -> Any:
    """Check the names, and return them unchanged.

    Raises:
        ValueError: they are not ``num_samples`` names.
    """
    if sample_ids is not None and (not hasattr(sample_ids, "__getitem__") or len(sample_ids) != num_samples):
        size = str(len(sample_ids)) if hasattr(sample_ids, "__len__") else repr(sample_ids)
        raise ValueError(f"sample_ids must have num_samples={num_samples} entries, got {size}.")
    return sample_ids


def digest_of(sample_ids: Sequence[Any] | None, count: int) -> str | None:
    """Digest of the first ``count`` names, the same for lists and arrays of them; None without names."""
    if sample_ids is None:
        return None
    return hashlib.sha256("\n".join(map(str, sample_ids[:count])).encode()).hexdigest()


def coded(
    groups: NDArray[Any], num_samples: int, batch_size: int
) -> tuple[NDArray[Any], NDArray[np.int64], tuple[int, ...]]:
    """The distinct labels in order, the code of each sample's label, int64[N], and the number of samples with each.

    Raises:
        ValueError: there is not one label per sample, or labels are of several kinds or too many.
    """
    if groups.shape != (num_samples,):
        raise ValueError(f"groups must have shape ({num_samples},), one label per sample, got {groups.shape}.")
    try:
        labels, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    except TypeError as error:
        raise ValueError(f"groups must be labels of one kind, got {groups[:5]!r} and more.") from error
    if len(labels) >= min(batch_size, 2**16):
        raise ValueError(
            f"groups must have fewer distinct labels than batch_size={batch_size}, got {len(labels)}: "
            "each batch takes at least one sample of each, and at most 65535 labels are possible."
        )
    return labels, codes, tuple(sizes.tolist())
