"""Logs: what one step of a loop reports, in named collections, a JAX pytree if JAX is in use; and their history."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..events.caller import warn
from ..streams.stages import as_scalar

FIRST_LOOKED_AT = ("metrics", "stateful_metrics", "losses", "outputs")
"""Where a short name is looked for first; then in the other collections, in the order of their first entries."""

_with_jax: set[Any] = set()


class Entries(dict[str, Any]):
    """The entries of one collection, also as attributes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"entry must be one of {sorted(self)}, got {name!r}.") from None


class Logs(dict[str, Entries]):
    """Named values in named collections: ``logs["metrics"]["loss"]``, ``logs.metrics.loss`` or ``logs.loss``.

    Values are kept as they are, on their device; torch tensors are detached. Where JAX is loaded, a jitted function
    may return it.

    >>> step = Logs()
    >>> step.add_metric("loss", 0.5).add_entry("states", "weight", 2.0).weight
    2.0
    """

    __slots__ = ()

    def add_entry(self, collection: str, name: str, value: Any) -> Logs:
        """Put a value into a collection, in place of one of that name.

        Args:
            collection: Any text.
            name: Any text.
            value: Anything.

        Returns:
            These logs.

        Raises:
            TypeError: the collection or the name is not a text.
        """
        if not (isinstance(collection, str) and isinstance(name, str)):
            raise TypeError(f"collection and name must be strings, got {collection!r} and {name!r}.")
        self.setdefault(collection, Entries())[name] = value.detach() if hasattr(value, "detach") else value
        return self

    def add_metric(self, name: str, value: Any) -> Logs:
        """Add to "metrics": values of one step, which may be averaged over steps."""
        return self.add_entry("metrics", name, value)

    def add_stateful_metric(self, name: str, value: Any) -> Logs:
        """Add to "stateful_metrics": values that are averages already, of which the last one counts."""
        return self.add_entry("stateful_metrics", name, value)

    def add_loss(self, name: str, value: Any) -> Logs:
        """Add to "losses"."""
        return self.add_entry("losses", name, value)

    def add_output(self, name: str, value: Any) -> Logs:
        """Add to "outputs": predictions and the like, which bars and loggers leave alone."""
        return self.add_entry("outputs", name, value)

    def find(self, key: str) -> Any:
        """The value of "collection.name", or of a name in whichever collection has it.

        A name that several have is that of metrics, stateful_metrics, losses, outputs, then the one added first.

        Raises:
            KeyError: none has it.
        """
        place = place_of(key, self)
        if place is not None:
            return self[place[0]][place[1]]
        raise KeyError(f"key must be one of {names_of(self)}, got {key!r}.")

    def merge(self, more: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over all entries of other logs."""
        for collection, entries in more.items():
            self.setdefault(collection, Entries()).update(entries)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        try:
            return self.find(name)
        except KeyError as error:
            raise AttributeError(error.args[0]) from None


def place_of(key: str, collections: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    """The collection and the name that "collection.name" or a short name stands for; None where nothing has it."""
    collection, dot, name = key.partition(".")
    if dot and name in collections.get(collection, ()):
        return collection, name
    # In the order in which a short name is looked for.
    first = [each for each in FIRST_LOOKED_AT if each in collections]
    found = (each for each in (*first, *collections) if key in collections[each])
    return next(((each, key) for each in found), None)


def names_of(logs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every "collection.name", sorted, for messages."""
    return sorted(f"{collection}.{name}" for collection, entries in logs.items() for name in entries)


def logs() -> Logs:
    """Make empty `Logs`.

    >>> step = logs()
    >>> step.add_loss("mse", 0.25)
    {'losses': {'mse': 0.25}}
    """
    if not _with_jax and "jax" in sys.modules:
        tree_util = sys.modules.get("jax.tree_util")
        register = getattr(tree_util, "register_pytree_node", None)
        # JAX may be in the middle of being imported, in another thread for instance.
        if register is not None:
            _with_jax.add(tree_util)
            register(Logs, _flatten, _unflatten)
    return Logs()


def _flatten(tree: Logs) -> tuple[list[Any], tuple[tuple[str, str], ...]]:
    places = tuple((collection, name) for collection, entries in tree.items() for name in entries)
    return [tree[collection][name] for collection, name in places], places


def _unflatten(places: tuple[tuple[str, str], ...], values: Iterable[Any]) -> Logs:
    tree = Logs()
    for (collection, name), value in zip(places, values, strict=True):
        tree.setdefault(collection, Entries())[name] = value
    return tree


_ABSENT: Any = object()


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

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        return self._rows[number]

    def __iter__(self) -> Iterator[Logs]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"<History of {len(self)} rows: {', '.join(names_of(self._merged()))}>"

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
        merged = self._merged()
        columns: list[dict[int, Any]] = []
        # The counts of steps and seconds are in every row: asking for them with a rare entry is no mistake.
        logged: set[int] = set()
        for key in keys:
            place = place_of(key, merged)
            if place is None and fill is _ABSENT and self._rows:
                raise KeyError(f"key must be one that was logged, got {key!r} for {self!r}; or pass fill=.")
            collection, name = place or ("", key)
            rows = enumerate(self._rows)
            columns.append({number: row[collection][name] for number, row in rows if name in row.get(collection, ())})
            logged.update(columns[-1] if collection != "elapsed" else ())
        if fill is _ABSENT:
            chosen = set(columns[0]).intersection(*columns)
            if not drop and len(chosen) < len(logged):
                warn(
                    f"collect() left out {len(logged) - len(chosen)} of {len(logged)} rows that lack one of "
                    f"{keys}; pass fill= to keep them, or drop=True if that is meant.",
                    UserWarning,
                )
        else:
            chosen = set().union(*columns)
        lists = [[as_scalar(column.get(row, fill)) for row in sorted(chosen)] for column in columns]
        return tuple(lists) if len(lists) > 1 else lists[0]

    def _merged(self) -> Logs:
        """The newest value of every entry that some row has."""
        merged = Logs()
        for row in self._rows:
            merged.merge(row)
        return merged
