"""The configuration of a run in its checkpoints: compared with the current one, or used to build the run again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._validation import stable_repr, whole_number
from ..schedules.budget import BUDGETS
from ..sources.permutation import MAX_SAMPLES


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run, in a form that its checkpoints can hold.

    Attributes:
        values: Settings by name, as `describe` returns them.
        identity: Names of those that a resumed run should share with the saved one; a change causes a warning.
        changeable: Names of those that may well change on a resume; the `CheckpointLoaded` event lists changes.
    """

    values: Mapping[str, Any]
    identity: tuple[str, ...] = ()
    changeable: tuple[str, ...] = ()

    def differences(self, saved: Mapping[str, Any], names: Iterable[str]) -> list[str]:
        """Describe each setting that differs between a saved run and this one.

        Args:
            saved: The ``values`` of the saved run; settings that it lacks are skipped.
            names: Settings to compare.
        """
        return [
            f"{name} is {_text(self.values.get(name))}, it was {_text(saved[name])}"
            for name in names
            if name in saved and saved[name] != self.values.get(name)
        ]


def describe(name: str, value: Any) -> Any:
    """A setting as a checkpoint holds it: a plain value, or ``{"is": text}``, with a text that tells it from others."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if name in ("groups", "lengths"):
        labels = np.asarray(value)
        content = labels.tobytes() if labels.dtype.kind in "biufSU" else repr(labels.tolist()).encode()
        kind = "labels" if name == "groups" else name
        return {"is": f"{len(labels)} {kind} with the digest {hashlib.sha256(content).hexdigest()[:16]}"}
    return {"is": getattr(value, "__qualname__", None) or stable_repr(value)}


def _text(value: Any) -> str:
    return str(value["is"]) if isinstance(value, dict) and "is" in value else repr(value)


def arguments_of(
    config: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any], *, num_samples: int | None = None
) -> dict[str, Any]:
    """The settings that build the run of a checkpoint again.

    Args:
        config: The ``values`` of the saved `RunConfig`.
        new: Settings that replace saved ones.
        defaults: Settings that checkpoints hold, at their defaults; of others, such as folders, a file can say nothing.
        num_samples: Number of samples in the saved table, and no file may say more; None if it is not known.

    Raises:
        ValueError: an argument that a file cannot hold was not at its default and is missing in ``new``; the new
            batch size is not valid; or the saved number of samples is not that of the table.
    """
    if not config:
        raise ValueError("the checkpoint must hold the run's configuration, got none; use load_checkpoint() instead.")
    arguments = {}
    for name, value in config.items():
        if name in new or name not in defaults or value == describe(name, defaults[name]):
            continue
        if isinstance(value, dict):
            raise ValueError(f"{name} must be given again, as a file cannot hold it: it was {_text(value)}.")
        arguments[name] = value
    if num_samples is not None and arguments.get("num_samples", num_samples) != num_samples:
        raise ValueError(f"num_samples must be {num_samples} as in the table, got {arguments['num_samples']!r}.")
    if any(name in new for name in BUDGETS):
        for name in BUDGETS:
            arguments.pop(name, None)
    if new.get("batch_size") is not None:
        # The same number of samples as before.
        batch_size = whole_number("batch_size", new["batch_size"], least=1, most=MAX_SAMPLES)
        for name in {"num_steps", "warmup_steps"} & arguments.keys():
            arguments[name] = math.ceil(arguments[name] * config["batch_size"] / batch_size)
    return {**arguments, **new}
