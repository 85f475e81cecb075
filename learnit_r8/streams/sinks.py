"""Sinks: where a stream ends. A list, a file of JSON lines, a DataFrame, the screen."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from .._validation import how_to_install, import_needed, whole_number
from ..events.codec import strict_json
from ..state.durable_io import open_output
from .stages import as_scalar


def collect(
    events: Iterable[Mapping[str, Any]],
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a stream to its end into a list; the model is left out, numpy and tensor scalars become Python's.

    Args:
        events: The stream; it must end.
        include: Keys to keep; by default all.
        exclude: Or keys to leave out.

    Raises:
        ValueError: both are given.
        TypeError: one is not a collection of keys.

    >>> collect([{"step": 1, "loss": 0.5, "model": object()}])
    [{'step': 1, 'loss': 0.5}]
    """
    keep = _filter(include, exclude)
    return [{key: as_scalar(value) for key, value in event.items() if keep(key)} for event in events]


def collect_pd(
    events: Iterable[Mapping[str, Any]],
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> Any:
    """Read a stream to its end into a pandas DataFrame, one row an event; see `collect`.

    Args:
        events: The stream; it must end.
        include: Keys to keep; by default all but the model.
        exclude: Or keys to leave out.

    Raises:
        ImportError: pandas is not installed. The stream was not read.
        ValueError: both are given.
        TypeError: one is not a collection of keys.
    """
    pandas = import_needed("pandas", "collect_pd() needs pandas", how_to_install("pandas"))
    return pandas.DataFrame(collect(events, include, exclude))


def collect_jsonl(
    events: Iterable[Mapping[str, Any]],
    dest: str | os.PathLike[str] | IO[str],
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    *,
    append: bool = False,
) -> None:
    """Write a stream to its end as one line of strict JSON (RFC 8259) an event, each on disk before the next epoch.

    Numbers that are not finite become the strings "nan", "inf", "-inf", as in the journal; arrays become lists.

    Args:
        events: The stream; it must end.
        dest: A path, whose missing parent folders are made; or an open text file.
        include: Keys to keep; by default all but the model.
        exclude: Or keys to leave out.
        append: Whether to keep what the file holds; else it is replaced when the first event is there.

    Raises:
        ValueError: ``include`` and ``exclude`` are given.
        TypeError: one is not a collection of keys; later, a value has no JSON form.
    """
    keep = _filter(include, exclude)
    stream = iter(events)
    # A run that fails before its first event must not cost the log of the one before.
    first = list(itertools.islice(stream, 1))
    with _opened(dest, "a" if append else "w") as file:
        for event in itertools.chain(first, stream):
            parts = []
            for key in filter(keep, event):
                try:
                    parts.append(f"{strict_json(str(key))}: {strict_json(event[key])}")
                except TypeError:
                    raise TypeError(
                        f"event[{key!r}] must have a JSON form, got {event[key]!r}; leave it out with exclude=."
                    ) from None
            file.write(f"{{{', '.join(parts)}}}\n")
            file.flush()


def _opened(dest: Any, mode: Literal["w", "a"]) -> contextlib.AbstractContextManager[IO[str]]:
    if hasattr(dest, "write"):
        return contextlib.nullcontext(dest)
    path = Path(dest)
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(open_output(path, mode), mode, encoding="utf-8")


def _filter(include: Iterable[str] | None, exclude: Iterable[str] | None) -> Callable[[str], bool]:
    if include is not None and exclude is not None:
        raise ValueError(f"only one of include and exclude may be given, got {include!r} and {exclude!r}.")
    for name, keys in (("include", include), ("exclude", exclude)):
        if isinstance(keys, str):
            raise TypeError(f"{name} must be a collection of keys, got {keys!r}.")
    left_out = frozenset(("model", *(exclude or ())))
    if include is None:
        return lambda key: key not in left_out
    kept = frozenset(include) - left_out
    return lambda key: key in kept


def print_keys(
    *keys: str, precision: int = 4, include_step: bool = True, step_key: str = "step"
) -> Callable[[Mapping[str, Any]], None]:
    """Make a function for `tap` that prints some of an event on one line; "NA" for what it does not have.

    Args:
        *keys: What to print, in this order.
        precision: Digits after the point, >= 0.
        include_step: Whether the line begins with the step, if the event has one.
        step_key: Name of the step.

    Raises:
        ValueError: a negative precision, or nothing to print.

    >>> print_keys("train_loss", "val_loss")({"step": 5, "train_loss": 0.12345})
    step=0005 train_loss=0.1235 val_loss=NA
    """
    digits = whole_number("precision", precision, least=0)
    if not keys and not include_step:
        raise ValueError(f"keys must name something to print where include_step is {include_step!r}, got {keys!r}.")

    def show(event: Mapping[str, Any]) -> None:
        parts = []
        if include_step and step_key in event:
            step = as_scalar(event[step_key])
            parts.append(f"{step_key}={step:04d}" if isinstance(step, int) else f"{step_key}={step}")
        for key in keys:
            value = as_scalar(event.get(key, "NA"))
            parts.append(f"{key}={value:.{digits}f}" if isinstance(value, float) else f"{key}={value}")
        print(*parts, flush=True)

    return show
