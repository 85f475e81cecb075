"""The guards that can be chosen by name."""

from __future__ import annotations

from typing import Any, Literal

from .._validation import check_choice
from .finite import FiniteGuard
from .spike import SpikeGuard
from .verdict import Guard

GuardName = Literal["spike", "finite"]

_GUARDS: dict[str, Guard] = {"spike": SpikeGuard(), "finite": FiniteGuard()}


def as_guard(value: Any) -> Guard:
    """The guard of a name, or the guard itself.

    Raises:
        ValueError: there is no guard of this name.
        TypeError: it is a boolean or None: some guard there must be.
    """
    if value is None or isinstance(value, bool):
        raise TypeError(f"guard must be one of {tuple(_GUARDS)} or a guard, got {value!r}; 'finite' refuses least.")
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    check_choice("guard", value, tuple(_GUARDS), " or a guard")
    return _GUARDS[value]
