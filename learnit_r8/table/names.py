"""The user's names of samples, the ids that come with batches, and group labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def checked_ids(sample_ids: Any, num_samples: int) -> Any:
    """Check the names, and return them unchanged.

    Raises:
        ValueError: they are not ``num_samples`` names, or all the same.
    """
    if isinstance(sample_ids, str):
        raise ValueError(f"sample_ids must be a list of num_samples={num_samples} names, got the text {sample_ids!r}.")
    if sample_ids is not None and (not hasattr(sample_ids, "__getitem__") or len(sample_ids) != num_samples):
        size = str(len(sample_ids)) if hasattr(sample_ids, "__len__") else repr(sample_ids)
        raise ValueError(f"sample_ids must have num_samples={num_samples} entries, got {size}.")
    # The names beyond the first that differs are not looked at: there may be millions.
    if sample_ids is not None and num_samples > 1 and all(str(one) == str(sample_ids[0]) for one in sample_ids):
        raise ValueError(f"sample_ids must tell the samples apart, got {sample_ids[0]!r} for all {num_samples}.")
    return sample_ids


INDICES, INTEGERS, TEXTS = "indices", "integers", "texts"
"""Kinds of ids: positions in a data set, which are the rows of the table, and names of two kinds."""


class Members(NamedTuple):
    """The samples of a batch of the user's.

    Attributes:
        indices: int64[M], their positions in the table, -1 for one that is not kept.
        num_rows: P, rows of the batch.
        counts: int64[P], how many of them are in each row; None if there is one in each.
    """

    indices: NDArray[np.int64]
    num_rows: int
    counts: NDArray[np.int64] | None = None


class SampleIds:
    """The ids that came with the user's batches; the first id is sample 0 of the table, and so on.

    Args:
        most: Most ids that are kept, >= 1.

    Attributes:
        most: As given.
        kind: One of "indices", "integers" and "texts", fixed by the first ids; None before.
        size: Samples that are known.
        names: The ids in the order in which they came; of indices none, as they are their own names.
        num_beyond: Visits of samples that are not kept, as there were `most` others before.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kind: str | None = None
        self.names: list[Any] = []
        self.num_beyond = 0
        self._places: dict[Any, int] = {}
        self.size = 0

    def expect(self, size: int) -> None:
        """Take the positions in a data set of this size for ids.

        Raises:
            ValueError: ids of another kind came before.
        """
        self._check_kind(INDICES, "the indices that a DataLoader draws")
        self.size = min(self.most, max(self.size, size))

    def find(self, ids: Any) -> Members:
        """The places of the ids of a batch; those that are new get the next ones.

        Args:
            ids: One id a row, or a sequence of ids a row: sequences, or an array of one or two dimensions.

        Raises:
            TypeError: an id is neither an integer nor a text.
            ValueError: ids are of another kind than those before; or an integer has more than 64 bits.
        """
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        if not isinstance(rows, (list, tuple)):
            raise TypeError(f"ids must be a sequence with an id, or several, for each row of a batch, got {ids!r}.")
        num_rows, counts = len(rows), None
        try:
            # Nearly always every id is known.
            return Members(np.fromiter(map(self._places.__getitem__, rows), np.int64, num_rows), num_rows)
        except (KeyError, TypeError):
            rows = [each.tolist() if hasattr(each, "tolist") else each for each in rows]
        if any(isinstance(row, (list, tuple)) for row in rows):
            rows = [row if isinstance(row, (list, tuple)) else (row,) for row in rows]
            counts = np.fromiter(map(len, rows), np.int64, num_rows)
            rows = [each for row in rows for each in row]
            counts = None if (counts == 1).all() else counts
        # All are checked before the first is added.
        for each in rows:
            self._check_kind(_kind_of(each), repr(each))
        places = []
        for each in rows:
            place = self._places.get(each, -1)
            if place < 0 and len(self.names) < self.most:
                place = self._places[each] = len(self.names)
                self.names.append(each)
            places.append(place)
        self.size, self.num_beyond = max(self.size, len(self.names)), self.num_beyond + places.count(-1)
        return Members(np.array(places, np.int64), num_rows, counts)

    def keep_indices(self, indices: NDArray[np.int64]) -> None:
        """Keep samples that a sampler has drawn by their positions, int64[M], some beyond the data set as it is known.

        Those that are not kept become -1.
        """
        self.size = min(self.most, max(self.size, int(indices.max()) + 1))
        is_kept = (indices >= 0) & (indices < self.size)
        self.num_beyond += len(indices) - int(np.count_nonzero(is_kept))
        indices[~is_kept] = -1

    def _check_kind(self, kind: str, what: str) -> None:
        if self.kind is None:
            self.kind = kind
        elif kind != self.kind:
            raise ValueError(
                f"ids must stay of one kind in a run, and of that of a saved run that it continues, got {what} where "
                f"those before were {_SAID[self.kind]}."
            )

    def name_of(self, index: int) -> Any:
        """The id of a sample."""
        return self.names[index] if self.names else index

    def state_dict(self) -> dict[str, Any]:
        """All ids, as arrays."""
        state: dict[str, Any] = {"kind": self.kind, "size": self.size, "num_beyond": self.num_beyond}
        if self.kind == INTEGERS:
            state["names"] = np.array(self.names, np.int64)
        elif self.kind == TEXTS:
            texts = [text.encode("utf-8", "surrogatepass") for text in self.names]
            state["lengths"] = np.fromiter(map(len, texts), np.int64, len(texts))
            state["names"] = np.frombuffer(b"".join(texts), np.uint8).copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        names: list[Any] = []
        if state["kind"] == INTEGERS:
            names = np.asarray(state["names"], np.int64).tolist()
        elif state["kind"] == TEXTS:
            ends = np.cumsum(np.asarray(state["lengths"], np.int64)).tolist()
            whole = np.asarray(state["names"], np.uint8).tobytes()
            starts = [0, *ends[:-1]]
            names = [whole[a:b].decode("utf-8", "surrogatepass") for a, b in zip(starts, ends, strict=True)]
        self.kind, self.num_beyond, self.size = state["kind"], int(state["num_beyond"]), int(state["size"])
        # The list itself is what views hold.
        self.names[:] = names
        self._places = {name: place for place, name in enumerate(names)}


def _kind_of(name: Any) -> str:
    if isinstance(name, str):
        return TEXTS
    if isinstance(name, int) and not isinstance(name, bool):
        if not -(2**63) <= name < 2**63:
            raise ValueError(f"ids must be integers of 64 bits or texts, got {name!r}; give str(id).")
        return INTEGERS
    raise TypeError(f"ids must be integers or texts, got {name!r}, a {type(name).__name__}.")


_SAID = {INDICES: "indices that a DataLoader drew", INTEGERS: "integers", TEXTS: "texts"}


def coded(groups: NDArray[Any], num_samples: int) -> tuple[NDArray[Any], NDArray[np.int64], tuple[int, ...]]:
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
    if len(labels) >= 2**16:
        raise ValueError(f"groups must have at most 65535 distinct labels, got {len(labels)}.")
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
