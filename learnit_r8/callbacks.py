"""The user's save and load callbacks, in each of the forms people have written them in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def check_callback(name: str, callback: Any) -> None:
    """Raise TypeError unless ``callback`` is None or callable; ``name`` is the argument it came in."""
    if callback is not None and not callable(callback):
        raise TypeError(f"{name} must be a function or None, got {callback!r}.")


def call_save(callback: Callable[..., Any], state: dict[str, Any], filepath: str) -> None:
    """Call ``callback(state_dict, filepath)``, or ``callback(filepath)`` if that is all it requires."""
    if _num_required(callback) == 1:
        callback(filepath)
    else:
        callback(state, filepath)


def call_load(callback: Callable[..., Any], source: Any, *, from_ram: bool) -> None:
    """Call ``callback(source)``, with the keyword ``from_ram`` if it takes that. What it returns is ignored."""
    if _takes_keyword(callback, "from_ram"):
        callback(source, from_ram=from_ram)
    else:
        callback(source)


def _parameters(callback: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(callback).parameters.values())
    except (TypeError, ValueError):
        # Some built-in functions have no signature; they are called in the documented form.
        return []


def _num_required(callback: Callable[..., Any]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in _parameters(callback))


def _takes_keyword(callback: Callable[..., Any], name: str) -> bool:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(p.kind is p.VAR_KEYWORD or (p.name == name and p.kind in named) for p in _parameters(callback))
