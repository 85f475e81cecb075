"""Files of tensors: read without running any code from them, by torch's own format or by safetensors."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoint.durable_io import open_output
from ..checkpoint.state_form import put_together, take_apart
from ..checkpoint.tensors import name_of

SUFFIX = ".safetensors"
_TREE = "tree"
_HELD = re.compile(r"bool|u?int8|int(16|32|64)|b?float(16|32|64)|float8_e(4m3|5m2)fn(uz)?|float8_e5m2")
"""Kinds of numbers that all versions of both formats can hold."""


class _NamedTensors:
    """The tensors of a file, by their dotted keys."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def has_kind(self, tensor: torch.Tensor) -> bool:
        return _HELD.fullmatch(name_of(tensor.dtype)) is not None

    def put(self, key: str, array: Any) -> str:
        while key in self.tensors:
            # A key with a dot in it may look like two.
            key += "'"
        # The file refuses tensors that share memory.
        self.tensors[key] = torch.tensor(array) if isinstance(array, np.ndarray) else array.clone()
        return key

    def put_array(self, key: str, array: NDArray[Any]) -> Any:
        if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8 and array.dtype.isnative:
            return {"array": self.put(key, array)}
        file = io.BytesIO()
        np.lib.format.write_array(file, array, allow_pickle=False)
        return {"npy": self.put(key, np.frombuffer(file.getvalue(), np.uint8))}


def save(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values, and what else `take_apart` takes.

    Where safetensors is installed the file is one of its kind, and its name gets the ending ``.safetensors``.

    Raises:
        TypeError: a value of another kind; the message gives its dotted key.
    """
    shelf = _NamedTensors()
    tree = json.dumps(take_apart(state, shelf))
    if importlib.util.find_spec("safetensors") is None:
        with open(open_output(path), "wb") as file:
            torch.save({"tree": tree, "tensors": shelf.tensors}, file)
        return
    from safetensors.torch import save_file

    path = os.fspath(path)
    path = path if path.endswith(SUFFIX) else path + SUFFIX
    # It takes a name only, and would follow a link.
    os.close(open_output(path))
    save_file(shelf.tensors, path, {_TREE: tree})


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote; tensors are on the CPU.

    Raises:
        ValueError: it is something else.
        ImportError: it was written with safetensors, which is not installed.
    """
    if os.fspath(path).endswith(SUFFIX):
        tree, tensors = _load_safetensors(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.keys() != {"tree", "tensors"}:
            raise ValueError(f"path must be a file that attach() wrote, got another in {os.fspath(path)!r}.")
        tree, tensors = content["tree"], content["tensors"]
    # A tensor may claim to be larger than what is stored, and each is there once: some parts are copies of theirs.
    if (claimed := sum(each.nbytes for each in tensors.values())) > (size := os.path.getsize(path)):
        raise ValueError(f"tensors in path must take at most the {size} bytes of the file, got {claimed}.")
    state: dict[str, Any] = put_together(json.loads(tree), tensors.pop)
    return state


def _load_safetensors(path: str | os.PathLike[str]) -> tuple[str, dict[str, torch.Tensor]]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(
            f"safetensors must be installed to read {os.fspath(path)!r}; pip install safetensors."
        ) from error
    with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
        tree = (file.metadata() or {}).get(_TREE)
        if tree is None:
            raise ValueError(f"path must be a file that attach() wrote, got another in {os.fspath(path)!r}.")
        return tree, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict


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
