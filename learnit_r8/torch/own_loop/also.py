"""What else belongs to a training: second networks, schedules, positions, the best value so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...checkpoint.callbacks import OWN

OF_THE_TRAINING = ("model", "optimizer", "scaler", "ema", "random", "random of ranks", OWN)
"""Names of the parts that every state has."""

WHEN = ("heal", "resume")


class AlsoPart(NamedTuple):
    """A part of a training.

    Attributes:
        holder: Has ``state_dict()`` and ``load_state_dict()``.
        is_healed: Whether it is restored with the model after damage, too; otherwise only when a run is resumed.
    """

    holder: Any
    is_healed: bool


class CallablePart:
    """A part that a pair of functions reads and loads.

    Args:
        read: ``()``, returns the state.
        load: ``(state)``, puts it back.
    """

    def __init__(self, read: Any, load: Any) -> None:
        self.state_dict, self.load_state_dict = read, load


def read_also(also: Any) -> dict[str, AlsoPart]:
    """Read the parts that `attach` was given as ``also``.

    Raises:
        TypeError: it is not a dict, or a part is neither something with a state nor a pair of functions.
        ValueError: a name is taken, or what follows a part is neither "heal" nor "resume".
    """
    if also is None:
        return {}
    if not isinstance(also, Mapping):
        raise TypeError(f"also must be a dict of parts by their names, got {also!r}.")
    taken = [name for name in also if name in OF_THE_TRAINING or not isinstance(name, str)]
    if taken:
        raise ValueError(f"also must have names other than {OF_THE_TRAINING}, texts, got {taken[0]!r}.")
    return {name: _read(name, part) for name, part in also.items()}


def networks_of(parts: Mapping[str, AlsoPart]) -> dict[str, torch.nn.Module]:
    """The networks among the parts, by their names."""
    return {name: part.holder for name, part in parts.items() if isinstance(part.holder, torch.nn.Module)}


def _read(name: str, given: Any) -> AlsoPart:
    part, when = given, ""
    if isinstance(given, tuple) and given and isinstance(given[-1], str):
        part, when = given[0] if len(given) == 2 else given[:-1], given[-1]
        if when not in WHEN:
            raise ValueError(f"the part {name!r} of also must be put back at 'heal' or 'resume', got {when!r}.")
    if isinstance(part, tuple) and len(part) == 2 and all(map(callable, part)):
        holder: Any = CallablePart(*part)
    elif hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
        holder = part
    else:
        raise TypeError(
            f"the part {name!r} of also must have state_dict() and load_state_dict(), or be a pair of functions that "
            f"read and load its state, got {part!r}."
        )
    return AlsoPart(holder, when == "heal" if when else _is_trained(holder))


def _is_trained(part: Any) -> bool:
    """Whether a part changes with the weights, so that it goes back with them: networks, optimizers, loss scalers."""
    return isinstance(part, torch.nn.Module) or hasattr(part, "param_groups") or hasattr(part, "get_scale")
