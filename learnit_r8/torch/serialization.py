"""The model files of a training with torch, and states of tensors alone as trainers write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import codec
from ..checkpoint.tree import pack, unpack

SUFFIX = ".safetensors"


def save(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state in the container of all files; its name gets the ending ``.safetensors``.

    Raises:
        TypeError: a value cannot be held; the message gives its dotted key.
    """
    path = os.fspath(path)
    codec.save(pack(state), path if path.endswith(SUFFIX) else path + SUFFIX)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote; tensors are on the CPU.

    Raises:
        ValueError: it is something else.
    """
    state: dict[str, Any] = unpack(codec.read(Path(path)))
    return state


def as_tensors(state: Any) -> Any:
    """The same nest with arrays as tensors, so that ``torch.load(weights_only=True)`` reads it."""
    if isinstance(state, np.ndarray):
        # torch has no unsigned kinds for most of what it can do, and old versions none at all.
        wide = state.astype(np.int64) if state.dtype.kind == "u" and state.dtype.itemsize > 1 else state
        return torch.from_numpy(np.ascontiguousarray(wide).copy())
    if isinstance(state, Mapping):
        return {name: as_tensors(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return (tuple if type(state) is tuple else list)(map(as_tensors, state))
    return state.item() if isinstance(state, np.generic) else state


def as_arrays(state: Any) -> Any:
    """The same nest with tensors as arrays, as `R8Scheduler.load_state_dict` takes it."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().numpy()
    if isinstance(state, Mapping):
        return {name: as_arrays(value) for name, value in state.items()}
    return [as_arrays(value) for value in state] if isinstance(state, (list, tuple)) else state
