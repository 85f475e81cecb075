"""Fields that are saved: a dataclass whose state is saved and loaded by the names of its fields."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar

NOT_SAVED = {"is_saved": False}
"""Metadata of a field that is a setting, or is saved by its owner in another form."""


class SavedFields:
    """What recovery remembers of one thing; heirs are dataclasses, in which each number stands beside its reason."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    @functools.cache
    def _saved(cls) -> list[Field[Any]]:
        return [each for each in fields(cls) if each.metadata != NOT_SAVED]

    @classmethod
    def example(cls) -> dict[str, Any]:
        """What `state_dict` returns, as an example for `state.kinds.check_kinds`."""
        found: dict[str, Any] = {}
        for each in cls._saved():
            start = _start_of(each)
            if isinstance(start, SavedFields):
                found[each.name] = start.example()
            elif isinstance(start, (list, deque)):
                found[each.name] = [0] if each.type == "deque[int]" else [0.0]
            else:
                # What is no number at the start may be none later, too.
                found[each.name] = (0.0,) if _plain(start) is None else start
        return found

    def forget(self) -> None:
        """Set every field that is saved to its value of the start."""
        for each in self._saved():
            setattr(self, each.name, _start_of(each))

    def state_dict(self) -> dict[str, Any]:
        """The fields as plain values: those of this kind as dicts; a float that is not finite as None."""
        return {each.name: _plain(getattr(self, each.name)) for each in self._saved()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; a field that an older version has not saved stays as it is."""
        for each in self._saved():
            if each.name in state:
                value, own = state[each.name], getattr(self, each.name)
                if isinstance(own, SavedFields):
                    own.load_state_dict(value)
                elif value is None:
                    setattr(self, each.name, each.default)
                else:
                    setattr(self, each.name, _formed(value, own))


def _start_of(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, SavedFields):
        return value.state_dict()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, deque):
        return list(value)
    if isinstance(value, (list, tuple)):
        return [list(each) if isinstance(each, (list, tuple)) else each for each in value]
    return dict(value) if isinstance(value, dict) else value


def _formed(value: Any, own: Any) -> Any:
    """A saved value in the form of the field's own."""
    if isinstance(own, deque):
        return deque(value, maxlen=own.maxlen)
    return type(own)(value) if isinstance(own, (list, tuple, dict)) else value
