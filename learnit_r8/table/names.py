"""The user's names of samples, and group labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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


PURE = 0.9
"""Least share of the samples of a class that must have the same group label for it to be the name of the class."""


def class_names_of(
    given: NDArray[np.int64], group: NDArray[Any] | None, group_labels: Sequence[Any] | None
) -> dict[int, Any]:
    """The names of class numbers, where the groups of the samples tell them.

    Args:
        given: int64[N], class number of each sample, -1 where unknown.
        group: int[N], code of its group; None without groups.
        group_labels: The label of each code.

    Returns:
        A label for each class number; empty unless nearly all samples of each class are of one group, and of two
        classes never the same.

    >>> class_names_of(np.array([0, 0, 1, -1]), np.array([1, 1, 0, 0]), ["cat", "dog"])
    {0: 'dog', 1: 'cat'}
    """
    known = given >= 0
    if group is None or group_labels is None or not len(group_labels) or not known.any():
        return {}
    pairs, counts = np.unique(given[known] * 2**16 + group[known], return_counts=True)
    classes, sizes = pairs // 2**16, np.bincount(given[known])
    main = counts >= PURE * sizes[classes]
    codes = pairs[main] % 2**16
    if len(codes) < len(np.unique(classes)) or len(np.unique(codes)) < len(codes):
        return {}
    return {
        int(number): group_labels[code] for number, code in zip(classes[main].tolist(), codes.tolist(), strict=True)
    }


def labels_of(numbers: NDArray[np.int64], names: Mapping[int, Any] | Sequence[Any]) -> list[Any]:
    """The labels of class numbers: their names, else the numbers; None for -1.

    >>> labels_of(np.array([1, -1, 7]), {1: "dog"})
    ['dog', None, 7]
    """
    known = names if isinstance(names, Mapping) else dict(enumerate(names))
    found = {number: None if number < 0 else known.get(number, number) for number in np.unique(numbers).tolist()}
    return [found[number] for number in numbers.tolist()]
