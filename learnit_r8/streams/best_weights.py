"""Best: a stage that keeps a copy of the best weights, because every event of a stream holds the one live model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from ..events.steps import mode_of
from ..triggers.patience import Record
from .event import number
from .stages import stage_maker


class Best:
    """The best event of the stream it was piped into, and the weights of that moment, in RAM.

    Attributes:
        value: The best value; None before there is one.
        event: The event it came with, without the model.
        weights: A copy of the model's ``state_dict()`` at that event.
    """

    def __init__(self, key: str, mode: str, min_delta: float) -> None:
        self._key, self._mode, self._min_delta = key, mode, min_delta
        Record(mode, min_delta)
        self._forget()

    def _forget(self) -> None:
        self.value: float | None = None
        self.event: dict[str, Any] | None = None
        self.weights: Any = None
        self._model: Any = None

    def __call__(self, events: Iterable[Any]) -> Iterator[Any]:
        """Pass every event on unchanged; a stream read later starts afresh."""
        self._forget()
        record = Record(self._mode, self._min_delta)
        for event in events:
            value = number(event, self._key)
            if record.improves(value):
                self._keep(value, event)
            yield event

    def _keep(self, value: float, event: Mapping[str, Any]) -> None:
        model: Any = event.get("model")
        if not hasattr(model, "state_dict"):
            raise TypeError(f"event['model'] must have a state_dict() for best() to keep, got {model!r}.")
        self.weights = copy.deepcopy(model.state_dict())
        self.value, self._model = value, model
        self.event = {name: item for name, item in event.items() if name != "model"}

    def restore(self, model: Any = None) -> None:
        """Put the best weights back.

        Args:
            model: Where to; by default the model of the stream.

        Raises:
            RuntimeError: no event had a finite value yet.
        """
        if self.value is None:
            raise RuntimeError(f"restore() needs an event with a finite {self._key!r}, got none so far.")
        (self._model if model is None else model).load_state_dict(self.weights)


@stage_maker
def best(key: str, mode: Literal["min", "max"] | None = None, min_delta: float = 0.0) -> Best:
    """Make a stage that remembers the best event and its weights; see `Best` for what it can tell.

    Args:
        key: Name of the number to watch; every event must have it, and a "model" with a ``state_dict()``.
        mode: "min" if lower is better, "max" if higher is; by default as the name says, see `is_lower_better`.
        min_delta: Least difference that counts as better, >= 0.

    Raises:
        ValueError: an argument out of its range.
        KeyError: later, an event has no such key.
        TypeError: later, the value is not a number, or the model has no ``state_dict()``.
    """
    return Best(key, mode_of(key, mode), min_delta)
