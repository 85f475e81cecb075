"""What the ``fit`` that is running was called with; Keras tells neither callbacks nor data sets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras


def local_of_fit(name: str) -> Any:
    """A variable of the ``fit`` that is running in this thread; None if there is none, or none of that name."""
    found = (frame.f_locals for frame in _of_models(inspect.currentframe()) if frame.f_code.co_name == "fit")
    return next(found, {}).get(name)


def scope_of_fit(model: Any) -> Callable[[FrameType | None], bool]:
    """Whether the ``fit`` of a model is running; a ``fit`` that an exception ends does not tell its callbacks."""

    def is_running(frame: FrameType | None) -> bool:
        return any(each.f_code.co_name == "fit" and each.f_locals["self"] is model for each in _of_models(frame))

    return is_running


def method_of_model() -> str:
    """Which method of a model is running in this thread: "fit", "evaluate" or "predict"; "" if there is none."""
    return next((frame.f_code.co_name for frame in _of_models(inspect.currentframe())), "")


def _of_models(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames from this one outwards in which a model is fitted, evaluated or predicts."""
    while frame is not None:
        is_method = frame.f_code.co_name in ("fit", "evaluate", "predict")
        if is_method and isinstance(frame.f_locals.get("self"), keras.Model):
            yield frame
        frame = frame.f_back


def check_alone(callback: Any) -> None:
    """Raise ValueError if ``fit`` was given another callback of the same kind: both would count its batches."""
    same = [each for each in callbacks_of_fit() or () if type(each) is type(callback)]
    if len(same) > 1:
        raise ValueError(f"callbacks of fit() must hold one R8Callback, got {len(same)}; leave the others out.")


def callbacks_of_fit() -> list[Any] | None:
    """The callbacks of the ``fit`` that is running in this thread; None if there is none."""
    if local_of_fit("epoch_iterator") is None:
        return None
    given = local_of_fit("callbacks")
    given = getattr(given, "callbacks", given)
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
