"""What a callback is called with, read once from its signature, and what may come back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any

NAMES = ("state", "batch", "elapsed", "loop_state")
"""What a callback may ask for, by name, or by position in this order."""

Call = Callable[[Any], Any]
"""A callback as a function of the loop's state."""


def inject(name: str, callback: Any) -> Call:
    """``callback`` as a function of the loop's state.

    A parameter of a known name gets what it names; another one gets what belongs to its position, or keeps its
    default; ``*args`` get the rest.

    Args:
        name: The argument it came in, for messages.
        callback: A function of up to four arguments.

    Raises:
        TypeError: it is not callable, has no readable signature, or needs something else.
    """
    step = getattr(callback, "on_step", callback)
    if not callable(step):
        raise TypeError(f"{name} must be functions of up to four of {NAMES}, got {callback!r}.")
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must have signatures that can be read (use a lambda), got {callback!r}.") from None
    positional, keywords = _arguments(name, callback, signature)
    return _bound(step, positional, keywords)


def _arguments(name: str, callback: Any, signature: inspect.Signature) -> tuple[list[str], list[str]]:
    """Which values to pass by position and which by keyword."""
    positional: list[str] = []
    keywords: list[str] = []
    by_position = True
    for place, parameter in enumerate(signature.parameters.values()):
        is_known, is_needed = parameter.name in NAMES, parameter.default is parameter.empty
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += NAMES[place:] if by_position else ()
        elif parameter.kind is parameter.KEYWORD_ONLY or not by_position:
            if is_known and parameter.kind is not parameter.POSITIONAL_ONLY:
                keywords.append(parameter.name)
            elif is_needed and parameter.kind is parameter.KEYWORD_ONLY:
                raise TypeError(f"{name} must need nothing but {NAMES}, got {callback!r} with {parameter.name!r}.")
        elif parameter.kind is not parameter.VAR_KEYWORD:
            by_position = is_known or is_needed
            if by_position and not is_known and place >= len(NAMES):
                raise TypeError(f"{name} must need nothing but {NAMES}, got {callback!r} with {parameter.name!r}.")
            if by_position:
                positional.append(parameter.name if is_known else NAMES[place])
    return positional, keywords


def _bound(callback: Callable[..., Any], positional: list[str], keywords: list[str]) -> Call:
    if keywords:
        return lambda here: callback(
            *(getattr(here, name) for name in positional), **{name: getattr(here, name) for name in keywords}
        )
    if not positional:
        return lambda here: callback()
    get = attrgetter(*positional)
    if len(positional) == 1:
        return lambda here: callback(get(here))
    return lambda here: callback(*get(here))
