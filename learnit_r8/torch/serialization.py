"""Files of tensors: read without running any code from them, by torch's own format or by safetensors."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

SUFFIX = ".safetensors"
_TREE = "tree"


def save(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values.

    Where safetensors is installed the file is one of its kind, and its name gets the ending ``.safetensors``.

    Raises:
        TypeError: a value of another kind; the message gives its dotted key.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _to_tree(state, "state", tensors)
    if importlib.util.find_spec("safetensors") is None:
        torch.save({"tree": json.dumps(tree), "tensors": tensors}, path)
        return
    from safetensors.torch import save_file

    whole = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    path = os.fspath(path)
    save_file(whole, path if path.endswith(SUFFIX) else path + SUFFIX, {_TREE: json.dumps(tree)})


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
    state: dict[str, Any] = _from_tree(json.loads(tree), tensors)
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


def _to_tree(value: Any, key: str, tensors: dict[str, torch.Tensor]) -> Any:
    """What JSON can hold of a state; its tensors go into ``tensors``."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping):
        # As pairs: the keys of an optimizer's state are numbers.
        pairs = [[_plain(name, key), _to_tree(item, f"{key}.{name}", tensors)] for name, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        items = [_to_tree(item, f"{key}.{number}", tensors) for number, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    return _plain(value, key)


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{key} must be a tensor, a number, a text, None, or a dict, list or tuple of them to be saved, got {value!r}."
    )


def _from_tree(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {name: _from_tree(item, tensors) for name, item in content}
    items = [_from_tree(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def as_tensors(state: Any) -> Any:
    """The same nest with arrays as tensors, so that ``torch.load(weights_only=True)`` reads it."""
    if isinstance(state, np.ndarray):
        # torch has no unsigned kinds for most of what it can do, and old versions none at all.
        wide = state.astype(np.int64) if state.dtype.kind == "u" and state.dtype.itemsize > 1 else state
        return torch.from_numpy(np.ascontiguousarray(wide).copy())
    if isinstance(state, Mapping):
        return {name: as_tensors(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(as_tensors, state)) if type(state) in (list, tuple) else list(map(as_tensors, state))
    return state.item() if isinstance(state, np.generic) else state


def as_arrays(state: Any) -> Any:
    """The same nest with tensors as arrays, as `R8Scheduler.load_state_dict` takes it."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().numpy()
    if isinstance(state, Mapping):
        return {name: as_arrays(value) for name, value in state.items()}
    return [as_arrays(value) for value in state] if isinstance(state, (list, tuple)) else state
