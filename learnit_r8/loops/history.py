"""History: the logs of all steps, and columns of it. Values are read from their device when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..events.caller import warn
from ..streams.event import as_scalar
from .log_entries import Logs, place_of

_ABSENT: Any = object()

Column = tuple[list[int], list[Any]]
"""In which rows an entry is, and its values there."""


class History:
    """A row of logs for every step that had any, in order: ``len``, indices, iteration.

    Args:
        rows: Logs to begin with.

    >>> history = History([Logs().add_metric("loss", x) for x in (3.0, 2.0)])
    >>> history.collect("loss")
    [3.0, 2.0]
    """

    def __init__(self, rows: Iterable[Logs] = ()) -> None:
        self._rows = list(rows)
        self._columns: dict[str, dict[str, Column]] = {}
        self._num_indexed = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        return self._rows[number]

    def __iter__(self) -> Iterator[Logs]:
        return iter(self._rows)

    def __repr__(self) -> str:
        self._index()
        names = sorted(f"{collection}.{name}" for collection, columns in self._columns.items() for name in columns)
        return f"<History of {len(self)} rows: {', '.join(names)}>"

    def append(self, row: Logs) -> None:
        """Add a row; it must not be changed afterwards."""
        self._rows.append(row)

    def collect(self, *keys: str, fill: Any = _ABSENT, drop: bool = False) -> Any:
        """Columns of the history: a list for one key, a tuple of equally long lists for several.

        Args:
            *keys: "collection.name", or a name in whichever collection has it (see `Logs.find`). "steps", "samples"
                and "time" are in every row.
            fill: What to put where a row lacks one of the keys; by default such rows are left out.
            drop: Whether leaving out rows that have some of the keys is meant, and so needs no warning.

        Returns:
            Values as they were logged; 0-dim arrays and tensors as Python numbers.

        Raises:
            ValueError: no keys, or both ``fill`` and ``drop``.
            KeyError: no row has such a key, and there is no ``fill``.

        >>> history = History([Logs().add_metric("a", 1), Logs().add_metric("a", 2).add_metric("b", 3)])
        >>> history.collect("a", "b", fill=0)
        ([1, 2], [0, 3])
        """
        if not keys or (drop and fill is not _ABSENT):
            raise ValueError(f"keys must be given, and only one of fill and drop, got {keys!r}, {fill!r} and {drop!r}.")
        self._index()
        columns = [self._column(key, needed=fill is _ABSENT) for key in keys]
        if fill is _ABSENT:
            chosen = set(columns[0][0]).intersection(*(rows for rows, _ in columns))
            if not drop:
                self._warn_of_gaps(keys, columns, len(chosen))
        else:
            chosen = set().union(*(rows for rows, _ in columns))
        lists = tuple(_picked(column, sorted(chosen), fill) for column in columns)
        return lists if len(lists) > 1 else lists[0]

    def columns(self) -> dict[str, dict[str, Column]]:
        """Everything, as ``{collection: {name: (row numbers, values)}}``; values as they were logged."""
        self._index()
        return self._columns

    def _index(self) -> None:
        for number in range(self._num_indexed, len(self._rows)):
            for collection, entries in self._rows[number].items():
                columns = self._columns.setdefault(collection, {})
                for name, value in entries.items():
                    rows, values = columns.setdefault(name, ([], []))
                    rows.append(number)
                    values.append(value)
        self._num_indexed = len(self._rows)

    def _column(self, key: str, *, needed: bool) -> Column:
        place = place_of(key, self._columns)
        if place is not None:
            return self._columns[place[0]][place[1]]
        if needed and self._rows:
            raise KeyError(f"key must be one that was logged, got {key!r} for {self!r}; or pass fill=.")
        return [], []

    def _warn_of_gaps(self, keys: tuple[str, ...], columns: list[Column], num_kept: int) -> None:
        # The counts of steps and seconds are in every row: asking for them along with a rare entry is no mistake.
        everywhere = self._columns.get("elapsed", {})
        logged = [rows for rows, values in columns if all(values is not column[1] for column in everywhere.values())]
        num_with_some = len(set().union(*logged))
        if num_kept < num_with_some:
            warn(
                f"collect() left out {num_with_some - num_kept} of {num_with_some} rows that lack one of {keys}; "
                "pass fill= to keep them, or drop=True if that is meant.",
                UserWarning,
            )


def _picked(column: Column, chosen: list[int], fill: Any) -> list[Any]:
    found = dict(zip(*column, strict=True))
    return [as_scalar(found[row]) if row in found else fill for row in chosen]
