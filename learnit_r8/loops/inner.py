"""inner_loop: a loop inside a loop, whose logs become entries of the step that called it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from ..streams.event import as_scalar
from .history import History
from .logs import Logs

Aggregation = str | Callable[[list[Any]], Any]
"""How the values of many steps become one."""

_FUNCTIONS: dict[str, Callable[[list[Any]], Any]] = {
    "last": lambda values: values[-1],
    "first": lambda values: values[0],
    "sum": sum,
    "min": min,
    "max": max,
}
_DEFAULT: Mapping[str, Aggregation] = {"metrics": "mean", "losses": "mean"}
_LEFT_OUT = ("elapsed", "outputs")


def inner_loop(
    name: str,
    loop_fn: Callable[[Any], tuple[Any, History, Any]],
    *,
    aggregation: Aggregation | Mapping[str, Aggregation] | None = None,
    output_state: bool = False,
) -> Callable[[Any], Any]:
    """Make a callback that runs another loop on the state and logs what came of it as "metric_name".

    Args:
        name: What to append to the names of the entries, as in "accuracy_test".
        loop_fn: ``(state)``, returns what a loop returns.
        aggregation: "last", "first", "mean" (weighted by the samples of the steps), "sum", "min", "max", or a
            function of a list; for all collections, or a dictionary of one for each. By default the mean of metrics
            and losses and the last of the others; outputs only where the dictionary names them.
        output_state: Whether the state that the inner loop ends with becomes that of the outer one.

    Raises:
        TypeError: the name is not a text, or ``loop_fn`` not callable.
        ValueError: an unknown aggregation.
    """
    if not isinstance(name, str) or not callable(loop_fn):
        raise TypeError(f"name and loop_fn must be a text and a function, got {name!r} and {loop_fn!r}.")
    chosen = aggregation if isinstance(aggregation, Mapping) else {}
    default = aggregation if isinstance(aggregation, str) or callable(aggregation) else None
    for one in (*chosen.values(), *(() if aggregation is None or chosen else (aggregation,))):
        if not callable(one) and one != "mean" and one not in _FUNCTIONS:
            raise ValueError(f"aggregation must be mean, one of {sorted(_FUNCTIONS)}, or a function, got {one!r}.")

    def run(state: Any) -> Any:
        new_state, history, _ = loop_fn(state)
        logs = aggregated(history, {**_DEFAULT, **chosen} if default is None else {}, default or "last", name, chosen)
        return (logs, new_state) if output_state else logs

    return run


def aggregated(
    history: History, of_collection: Mapping[str, Aggregation], default: Aggregation, suffix: str, wanted: Any = ()
) -> Logs:
    """The rows of a history as one, with a suffix to every name."""
    logs = Logs()
    sizes = _sizes(history)
    for collection, columns in history.columns().items():
        if collection in _LEFT_OUT and collection not in wanted:
            continue
        for name, (rows, values) in columns.items():
            how = of_collection.get(collection, default)
            read = [as_scalar(value) for value in values]
            if how == "mean":
                one = _mean(read, [sizes[row] for row in rows])
            else:
                one = (how if callable(how) else _FUNCTIONS[how])(read)
            logs.add_entry(collection, f"{name}_{suffix}", one)
    return logs


def _sizes(history: History) -> list[int]:
    """Samples since the row before."""
    done = [0, *(row["elapsed"]["samples"] for row in history)]
    return [now - before for before, now in itertools.pairwise(done)]


def _mean(values: list[Any], sizes: list[int]) -> Any:
    weights = sizes if sum(sizes) else [1] * len(sizes)
    return sum(value * weight for value, weight in zip(values, weights, strict=True) if weight) / sum(weights)
