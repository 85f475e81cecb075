"""A state taken apart into plain values and named arrays, as files hold it, and put together again.

Nothing that is read is trusted: no class is looked up by name, no code is run, and what does not fit together is
refused.
"""

from __future__ import annotations

import importlib.util
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..events.caller import warn
from . import tensors
from .codec import Labelled
from .state_tree import Node, is_own_kind, open_node

VERSION = 2
"""Of what `pack` returns."""

LABELS = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}
"""Kinds of numbers that numpy lacks, as files call them."""

_PAIRS: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "ordered": OrderedDict,
    "namespace": lambda pairs: SimpleNamespace(**dict(pairs)),
}
_ITEMS: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple}


class LeftOut(NamedTuple):
    """Stands in a state for a value that could not be copied or saved.

    Attributes:
        reason: Why.
    """

    reason: str


_OTHERS: dict[str, Callable[[Any], Any]] = {
    "set": set,
    "frozenset": frozenset,
    "complex": lambda parts: complex(*parts),
    "dtype": tensors.dtype_of,
    "device": lambda name: importlib.import_module("torch").device(name),
    "left_out": lambda reason: LeftOut(str(reason)),
}


_TIED = frozenset(("array", "bits", "tensor", "tensor_bits"))
"""Kinds of nodes that {"tied": number} may stand for later, which are numbered in their order."""


class _Taker:
    """Takes one state apart; see `pack`."""

    def __init__(self, holders: bool) -> None:
        self._holders = holders
        self._count = 0
        # With each array, as its memory must not become that of another one meanwhile.
        self._tied: dict[Any, tuple[int, Any]] = {}

    def of(self, value: Any, key: str) -> Any:
        if _is_plain(value):
            return value
        if isinstance(value, LeftOut):
            return {"left_out": value.reason}
        node = open_node(value, holders=self._holders)
        if reason := why_not(value, node):
            raise TypeError(
                f"{key} must be an array, a tensor, a plain value, or a dict, list, tuple, dataclass or namespace of "
                f"them to be saved, got {reason}."
            )
        if node is None:
            # Tied weights: the very same memory is stored once.
            place = _place_of(value)
            if place in self._tied:
                return {"tied": self._tied[place][0]}
            leaf = self._leaf(value, key)
            if leaf.keys() <= _TIED:
                if place is not None:
                    self._tied[place] = self._count, value
                self._count += 1
            return leaf
        parts = [self.of(part, f"{key}.{name}") for name, part in node.parts.items()]
        return {node.kind: parts if node.kind in _ITEMS else list(map(list, zip(node.parts, parts, strict=True)))}

    def _leaf(self, value: Any, key: str) -> Any:
        if tensors.is_tensor(value):
            return self._tensor(value, key)
        if isinstance(value, (set, frozenset)):
            return {type(value).__name__: [self.of(item, key) for item in value]}
        if isinstance(value, bytes):
            return {"bytes": Labelled(np.frombuffer(value, np.uint8), key)}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if _torch_kind(value):
            return {_torch_kind(value): tensors.name_of(value)}
        if isinstance(value, np.ma.MaskedArray):
            parts = [np.asarray(value.data), np.ma.getmaskarray(value), np.asarray(value.fill_value)]
            return {"masked": [{"array": Labelled(part, key)} for part in parts]}
        array = np.asarray(_key_data(value))
        if not is_own_kind(array.dtype):
            # It would come back as raw bytes.
            bits, kind = array.view(f"u{array.itemsize}"), LABELS.get(array.dtype.name, "")
            return {"bits": [array.dtype.name, {"array": Labelled(bits, key, kind, bits.shape)}]}
        node = {"array": Labelled(array, key)}
        return {"scalar": node} if isinstance(value, np.generic) else node

    def _tensor(self, tensor: Any, key: str) -> Any:
        kind = tensors.kind_of(tensor)
        if kind != "dense":
            about, parts = tensors.parts_of(tensor, kind)
            return {"composite": [kind, about, [self._tensor(part, f"{key}.{n}") for n, part in enumerate(parts)]]}
        plain = tensors.dense(tensor)
        if tensors.is_known_to_numpy(plain):
            return {"tensor": Labelled(plain.numpy(), key)}
        name, shape = tensors.name_of(plain.dtype), tuple(plain.shape)
        bits = Labelled(tensors.bits_of(plain).numpy(), key, LABELS.get(name, ""), shape)
        return {"tensor_bits": [name, list(shape), bits]}


def _place_of(value: Any) -> Any:
    """What is the same for arrays and dense tensors that are the same part of the same memory; None for others."""
    if type(value) is np.ndarray and value.size:
        return value.__array_interface__["data"][0], value.shape, value.strides, value.dtype.str
    if tensors.is_tensor(value) and tensors.kind_of(value) == "dense" and value.numel() and value.data_ptr():
        return value.data_ptr(), str(value.device), value.shape, value.stride(), value.dtype
    return None


def why_not(value: Any, node: Node | None) -> str:
    """What a leaf, or a node with such keys, is called if it cannot be held; "" if it can."""
    if node is not None:
        odd = [name for name in node.parts if not _is_plain(name)] if node.kind in _PAIRS else []
        return f"the key {odd[0]!r}" if odd else ""
    if tensors.is_tensor(value):
        return tensors.why_not(value)
    if _is_plain(value) or isinstance(value, (bytes, complex, LeftOut)) or _torch_kind(value):
        return ""
    if isinstance(value, (set, frozenset)) and all(map(_is_plain, value)):
        return ""
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return "an array of objects" if getattr(value.dtype, "hasobject", False) else ""
    return f"{type(value).__name__} {value!r}"[:100]


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _torch_kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device") else ""


def _key_data(value: Any) -> Any:
    return importlib.import_module("jax").random.key_data(value) if is_key(value) else value


def is_key(leaf: Any) -> bool:
    """Whether it is one of JAX's typed random keys."""
    return str(getattr(leaf, "dtype", "")).startswith("key<")


def leave_out(state: Any, found: dict[str, str], key: str = "", *, holders: bool = False) -> Any:
    """A state without what cannot be held; the very same one if there is nothing of that kind.

    Args:
        state: Anything.
        found: Gets the dotted key of each value that is left out, and what it is.
        key: What the state is called.
        holders: Whether objects with ``state_dict()`` are looked into.

    Raises:
        TypeError: a tensor is of a kind that no training changes; the message gives its dotted key.
    """
    node = open_node(state, holders=holders)
    if reason := why_not(state, node):
        if tensors.is_tensor(state) and tensors.is_refused(state):
            raise TypeError(
                f"{key[1:] or 'state'} must be a dense or sparse tensor of numbers of a byte or more, got {reason}; "
                "keep it out of the state (register_buffer(..., persistent=False)), or hold it as a dense tensor."
            )
        found[key[1:]] = reason
        return LeftOut(reason)
    if node is None or isinstance(state, LeftOut):
        return state
    parts = [leave_out(part, found, f"{key}.{name}", holders=holders) for name, part in node.parts.items()]
    return state if all(map(operator.is_, parts, node.parts.values())) else node.build(parts)


def hold(state: Any, told: dict[str, str], text: str, *, holders: bool = False) -> Any:
    """A state without what cannot be held, which a warning names the first time.

    Args:
        state: Anything.
        told: What was named already; gets the rest.
        text: The warning, with a place for the names.
        holders: Whether objects with ``state_dict()`` are looked into.
    """
    found: dict[str, str] = {}
    state = leave_out(state, found, holders=holders)
    names = [f"{name} ({what})" for name, what in found.items() if name not in told]
    if names:
        told |= found
        warn(text.format(", ".join(names)))
    return state


def put_together(tree: Any) -> Any:
    """The state that `pack` was given, of its tree; dataclasses come back as namespaces, named tuples as tuples.

    Raises:
        ValueError: it is something else.
    """
    try:
        return _put(tree, [])
    except Exception as error:
        # Whatever numpy or torch raise, it is a bad file.
        raise ValueError(f"a model state must be one that was packed, got a damaged one ({error}).") from error


def _put(tree: Any, made: list[Any]) -> Any:
    """A part of a state; ``made`` gets the arrays and tensors that others may be tied to, in their order."""
    if _is_plain(tree):
        return tree
    if not isinstance(tree, Mapping):
        raise ValueError(f"a part of the kind {type(tree).__name__}")
    [(kind, held)] = tree.items()
    if kind in _PAIRS:
        return _PAIRS[kind]([(name, _put(part, made)) for name, part in held])
    if kind in _ITEMS:
        return _ITEMS[kind](_put(part, made) for part in held)
    if kind in _OTHERS:
        return _OTHERS[kind](held)
    if kind == "tied":
        return made[range(len(made))[held]]
    if kind == "bytes":
        return _checked(held).tobytes()
    array = _put_array(kind, held)
    if kind in _TIED:
        made.append(array)
    return array


def _put_array(kind: str, held: Any) -> Any:
    if kind == "array":
        return _checked(held.numpy() if tensors.is_tensor(held) else held)
    if kind == "scalar":
        return _put_array("array", held["array"])[()]
    if kind == "bits":
        name, node = held
        return of_other_kind(name, _checked(node["array"]))
    if kind == "masked":
        values, mask, fill = (_checked(part["array"]) for part in held)
        if values.shape != mask.shape or values.itemsize != fill.nbytes:
            raise ValueError(f"a mask of {mask.shape} and a filling of {fill.nbytes} bytes for {values.shape}")
        return np.ma.MaskedArray(values, mask, fill_value=fill)
    if kind == "tensor":
        return as_tensor(held)
    if kind == "tensor_bits":
        name, shape, bits = held
        return tensors.from_bits(as_tensor(_checked(bits).reshape(-1).view(np.uint8)), name, shape)
    if kind == "composite":
        what, about, parts = held
        made = [_put_array(each, part) for node in parts for each, part in node.items()]
        if not all(tensors.is_tensor(part) and tensors.kind_of(part) == "dense" for part in made):
            raise ValueError(f"a tensor of the kind {what!r} of others than dense ones")
        return tensors.make(what, about, made)
    raise ValueError(f"a part of the kind {kind!r}")


def _checked(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{type(value).__name__} in place of an array")
    return value


def as_tensor(value: Any) -> Any:
    """A tensor, of an array that it shares its memory with."""
    # The state is one of torch, so its program has loaded that, or will.
    torch = importlib.import_module("torch")
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(value)


def of_other_kind(name: str, bits: NDArray[Any]) -> Any:
    """Numbers of a kind that numpy itself has not, such as bfloat16; a tensor where only torch has it."""
    if importlib.util.find_spec("ml_dtypes") is None:
        return tensors.from_bits(as_tensor(bits), name, bits.shape)
    kind = getattr(importlib.import_module("ml_dtypes"), name, None)
    if not (isinstance(kind, type) and issubclass(kind, np.generic)):
        raise ValueError(f"numbers of the kind {name!r}")
    return bits.view(kind)


def pack(state: Any, *, holders: bool = False) -> dict[str, Any]:
    """A state in the form that `codec.write` takes; its arrays are not copied.

    Args:
        state: Anything.
        holders: Whether objects with ``state_dict()`` are taken apart too.

    Raises:
        TypeError: something in it cannot be held; the message gives its dotted key.
    """
    return {"version": VERSION, "tree": _Taker(holders).of(state, "state")}


def unpack(packed: Any) -> Any:
    """What `pack` was given, from what the codec has read.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(packed, Mapping) or packed.keys() != {"version", "tree"} or packed["version"] != VERSION:
        raise ValueError(f"a model state must be one that was packed in version {VERSION}, got {str(packed)[:80]}.")
    return put_together(packed["tree"])


def size_of(packed: Any) -> int:
    """Bytes of the arrays in a packed state."""
    if isinstance(packed, Mapping):
        return sum(map(size_of, packed.values()))
    if isinstance(packed, Labelled):
        return int(packed.values.nbytes)
    if isinstance(packed, (list, tuple)):
        return sum(map(size_of, packed))
    return int(getattr(packed, "nbytes", 0))
