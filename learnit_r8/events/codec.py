"""Events as lines of strict JSON, and back; a value of another type than its field is an error."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from . import EVENTS, Event

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(event: Event) -> str:
    """One line of strict JSON (RFC 8259): numbers that are not finite become the strings "nan", "inf", "-inf".

    >>> from learnit_r8.events import RolledBack
    >>> to_json(RolledBack(step=7, seconds=1.5, to_step=5, source="backup"))
    '{"kind": "RolledBack", "step": 7, "seconds": 1.5, "to_step": 5, "source": "backup"}'
    """
    return strict_json({"kind": type(event).__name__, **dataclasses.asdict(event)})


def strict_json(value: Any, *, non_finite: Callable[[float], Any] = repr, indent: int | None = None) -> str:
    """Strict JSON (RFC 8259), which has no number that is not finite.

    Args:
        value: Dicts, lists, tuples, arrays, tensors, numbers, paths, texts, None.
        non_finite: Returns the replacement of a number that is not finite; by default its name.
        indent: As for `json.dumps`.

    >>> strict_json({"loss": [0.5, math.nan]}), strict_json(math.inf, non_finite=lambda value: None)
    ('{"loss": [0.5, "nan"]}', 'null')
    """

    def encoded(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return non_finite(value)
        if isinstance(value, Mapping):
            return {str(key): encoded(item) for key, item in value.items()}
        if hasattr(value, "tolist"):
            return encoded(value.tolist())
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        return [encoded(item) for item in value] if isinstance(value, (tuple, list)) else value

    return json.dumps(encoded(value), allow_nan=False, indent=indent)


def from_fields(fields: Any) -> Event:
    """The event of a line of `to_json` that is decoded; fields that this version does not know are left out.

    Raises:
        ValueError: an unknown kind, or a missing or ill-typed field; the message shows it.
    """
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in EVENTS:
        raise ValueError(f"event kind must be one of {sorted(EVENTS)}, got {kind!r}.")
    readers, needed = _fields_of(kind)
    if missing := needed - fields.keys():
        raise ValueError(f"event {kind} must have the fields {sorted(readers)}, got none for {sorted(missing)}.")
    try:
        return EVENTS[kind](**{name: read(fields[name]) for name, read in readers.items() if name in fields})
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"event {kind} must have fields of its types, got {error}.") from None


@functools.cache
def _fields_of(kind: str) -> tuple[dict[str, Callable[[Any], Any]], frozenset[str]]:
    """What reads each field, and the fields without a default; a file may lack those with one."""
    readers = {name: _reader(hint) for name, hint in typing.get_type_hints(EVENTS[kind]).items()}
    none, fields = dataclasses.MISSING, dataclasses.fields(EVENTS[kind])
    return readers, frozenset(each.name for each in fields if each.default is none and each.default_factory is none)


def _reader(hint: Any) -> Callable[[Any], Any]:
    """A function that converts a decoded value to this type, and raises TypeError or KeyError if it cannot."""
    parts = typing.get_args(hint)
    if hint is float:
        return _read_float
    if isinstance(hint, types.UnionType):
        (other,) = (_reader(part) for part in parts if part is not types.NoneType)
        return lambda value: None if value is None else other(value)
    if typing.get_origin(hint) is tuple:
        item = _reader(parts[0])
        return lambda value: tuple([item(one) for one in _of(list, value)])
    if typing.get_origin(hint) is dict:
        number = _reader(parts[1])
        return lambda value: {name: number(one) for name, one in _of(dict, value).items()}
    return functools.partial(_of, hint)


def _of(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind or (kind is int and abs(value) >= 2**63):
        raise TypeError(f"{str(value)[:40]!r} for {kind.__name__}")
    return value


def _read_float(value: Any) -> float:
    if type(value) is float:
        return value
    return _NON_FINITE[value] if type(value) is str else float(_of(int, value))
