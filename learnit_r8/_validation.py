"""Checks of arguments that several parts share."""

from __future__ import annotations

import functools
import importlib
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def whole_number(name: str, value: Any, *, least: int, most: float = float("inf")) -> int:
    """``value`` as an int.

    Args:
        name: The argument, for the message.
        value: What was given; numpy's integers will do, booleans will not.
        least, most: The range it must be in.

    Raises:
        ValueError: it is not whole, or outside its range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) <= most:
        # The upper end is told only to those who are beyond it.
        is_above = is_number(value) and value > most
        bounds = f"in [{least}, {most}]" if is_above else f">= {least}"
        raise ValueError(f"{name} must be a whole number {bounds}, got {described(value)}.")
    return int(value)


def check_share(name: str, value: Any, *, has_zero: bool = True) -> None:
    """Raise ValueError unless the value is a number in [0, 1], or in (0, 1] without ``has_zero``."""
    if not (is_number(value) and 0 <= value <= 1 and (has_zero or value)):
        raise ValueError(f"{name} must be in {'[' if has_zero else '('}0, 1], got {value!r}.")


def described(value: Any) -> str:
    """What was given in place of a number, in one line, and how to get the number where that is clear."""
    if isinstance(value, str):
        return f"{value!r}, which is a str"
    if not hasattr(value, "__len__") or getattr(value, "shape", None) == ():
        return repr(value)
    return f"{type(value).__name__} of length {len(value)}; pass len(x)"


def stable_repr(value: Any) -> str:
    """``repr(value)`` without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def shortened(value: Any) -> str:
    """What was given, in one line of at most 80 characters: whole models and tensors fill a screen."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_choice(name: str, value: Any, choices: Collection[str], otherwise: str = "") -> None:
    """Raise ValueError, with the nearest of the choices, unless the value is one of them.

    Args:
        name: The argument, for the message.
        value: What was given.
        choices: What may be given, in the order of the message.
        otherwise: What else may be given, such as " or a function".
    """
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{name} must be one of {choices}{otherwise}, got {value!r}.{did_you_mean(value, choices)}")


def did_you_mean(given: Any, names: Iterable[str], *, least: float = 0.6) -> str:
    """A question that follows an error message, "" where no name is as near (``least``) to what was given."""
    import difflib

    near = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=least)
    return f" Did you mean {near[0]!r}?" if near else ""


def no_attribute(owner: object, name: str, meant: Mapping[str, str]) -> AttributeError:
    """The error of an attribute that is not there, with the name that is meant.

    Args:
        owner: The object that was asked.
        name: The attribute.
        meant: What to say of names that other libraries have.
    """
    hint = ""
    # Python itself asks for names such as __deepcopy__.
    if not name.startswith("_"):
        names = [each for each in dir(owner) if not each.startswith("_")]
        hint = f" {meant[name]}" if name in meant else did_you_mean(name, names)
    # With the owner as obj= Python would add a guess of its own, among private names too.
    return AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}.{hint}", name=name, obj=None)


class _LoopCall(functools.partial[Any]):
    """A method that returns an iterator, looked up and not yet called."""

    def __iter__(self) -> NoReturn:
        name = self.func.__name__
        raise TypeError(f"{name} must be called to loop over it, got the method itself; write {name}().")


class _LoopMethod:
    """Looks a method up as a `_LoopCall`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self._function = function

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self._function if owner is None else _LoopCall(self._function, owner)


def loop_method(function: F) -> F:
    """Decorate a method that loops are over: where its parentheses are missing, the error says so."""
    return _LoopMethod(function)  # type: ignore[return-value]


def is_number(value: Any) -> bool:
    """Whether it is a real number, numpy's included, and no boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def how_to_install(extra: str) -> str:
    """What to do where the packages of an extra are missing: no index has this package, and its name is free there."""
    return f'pip install ".[{extra}]" in a clone of the repository'


def import_needed(module: str, need: str, how: str) -> Any:
    """Import a module that not everybody has.

    Args:
        module: Its name.
        need: What needs what, as in "wandb() needs wandb".
        how: How to install it.

    Raises:
        ImportError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{need}, which could not be imported; {how} ({error}).") from error


def check_release(package: str, least: str) -> None:
    """Raise ImportError if an older release of a framework is installed than the adapter works with.

    Args:
        package: As pip calls it.
        least: The oldest release that will do, such as "2.5".
    """
    # Takes longer to import than all the rest of an import of the scheduler.
    import importlib.metadata

    found = importlib.metadata.version(package)
    if _numbers(found) < _numbers(least):
        raise ImportError(f"{package} must be release {least} or newer, got {found}; pip install -U {package}.")


def _numbers(release: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", release)[:2]]
