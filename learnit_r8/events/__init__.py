"""Events: frozen records, the only output of the scheduler. `codec` turns them into strict JSON and back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .event import Event as Event
from .event import Listener as Listener

if TYPE_CHECKING:
    from .kinds import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # Thirty dataclasses take a seventh of the package's import. By its name: `from . import` would ask this function.
    kinds = vars(importlib.import_module(".kinds", __name__))
    if name.startswith("_") or name not in kinds:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    globals().update({each: kind for each, kind in kinds.items() if not each.startswith("_")})
    return kinds[name]
