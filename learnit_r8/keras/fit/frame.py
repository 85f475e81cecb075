"""What the ``fit`` that is running was called with; Keras tells neither callbacks nor data sets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras


def local_of_fit(name: str) -> Any:
    """A variable of the ``fit`` that is running in this thread; None if there is none, or none of that name."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "fit" and isinstance(frame.f_locals.get("self"), keras.Model):
            return frame.f_locals.get(name)
        frame = frame.f_back
    return None


def scope_of_fit(model: Any) -> Callable[[FrameType | None], bool]:
    """Whether the ``fit`` of a model is running; a ``fit`` that an exception ends does not tell its callbacks."""

    def is_running(frame: FrameType | None) -> bool:
        while frame is not None and not (frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model):
            frame = frame.f_back
        return frame is not None

    return is_running


def method_of_model() -> str:
    """Which method of a model is running in this thread: "fit", "evaluate" or "predict"; "" if there is none."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_name
        if name in ("fit", "evaluate", "predict") and isinstance(frame.f_locals.get("self"), keras.Model):
            return name
        frame = frame.f_back
    return ""


def callbacks_of_fit() -> list[Any] | None:
    """The callbacks of the ``fit`` that is running in this thread; None if there is none."""
    if local_of_fit("epoch_iterator") is None:
        return None
    given = local_of_fit("callbacks")
    given = getattr(given, "callbacks", given)
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
