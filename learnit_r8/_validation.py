"""Checks of arguments that several parts share."""

from __future__ import annotations

import importlib.metadata
import numbers
import re
from typing import Any


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
        bounds = f">= {least}" if most == float("inf") else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be a whole number {bounds}, got {value!r}.")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether it is a real number, numpy's included, and no boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_release(package: str, least: str) -> None:
    """Raise ImportError if an older release of a framework is installed than the adapter works with.

    Args:
        package: As pip calls it.
        least: The oldest release that will do, such as "2.5".
    """
    found = importlib.metadata.version(package)
    if _numbers(found) < _numbers(least):
        raise ImportError(f"{package} must be of release {least} or newer, got {found}; pip install -U {package}.")


def _numbers(release: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", release)[:2]]
