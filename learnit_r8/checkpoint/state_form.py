"""A state taken apart into plain values and named arrays, as files and shared memory hold it, and put together again.

Nothing that is read is trusted: no class is looked up by name, no code is run, and what does not fit together is
refused.
"""

from __future__ import annotations

import importlib.util
import io
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..events.caller import warn
from . import tensors
from .state_tree import Node, is_own_kind, open_node

VERSION = 2
"""Of what `pack` returns; files of 7ddda59 have none, and are read too."""

BLOCK_BYTES = 2**22

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


class _Array:
    """An array that is written block by block, without a copy of the whole."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.dtype, self.shape = values.dtype, values.shape
        self._values = values

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return int(self._values.nbytes)

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes of its values in C order."""
        whole = np.ascontiguousarray(self._values).reshape(-1).view(np.uint8)
        for start in range(0, len(whole), BLOCK_BYTES):
            yield whole[start : start + BLOCK_BYTES]


class Shelf(Protocol):
    """Where `take_apart` puts arrays."""

    def has_kind(self, tensor: Any) -> bool:
        """Whether a tensor of this kind of numbers can be put here."""

    def put(self, key: str, array: Any) -> Any:
        """What stands in the tree for an array of numpy or a dense tensor."""

    def put_array(self, key: str, array: NDArray[Any]) -> Any:
        """The node of an array of numpy."""


class _Tree:
    """A tree whose arrays stay in place, as a checkpoint file takes them."""

    def has_kind(self, tensor: Any) -> bool:
        return tensors.is_known_to_numpy(tensor)

    def put(self, key: str, array: Any) -> Any:
        return _Array(array if isinstance(array, np.ndarray) else array.numpy())

    def put_array(self, key: str, array: NDArray[Any]) -> Any:
        return {"array": self.put(key, array)}


class _Taker:
    """Takes one state apart; see `take_apart`."""

    def __init__(self, shelf: Shelf, holders: bool) -> None:
        self._shelf, self._holders = shelf, holders

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
            return self._leaf(value, key)
        parts = [self.of(part, f"{key}.{name}") for name, part in node.parts.items()]
        return {node.kind: parts if node.kind in _ITEMS else list(map(list, zip(node.parts, parts, strict=True)))}

    def _leaf(self, value: Any, key: str) -> Any:
        if tensors.is_tensor(value):
            return self._tensor(value, key)
        if isinstance(value, (set, frozenset)):
            return {type(value).__name__: [self.of(item, key) for item in value]}
        if isinstance(value, bytes):
            return {"bytes": self._shelf.put(key, np.frombuffer(value, np.uint8))}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if _torch_kind(value):
            return {_torch_kind(value): tensors.name_of(value)}
        if isinstance(value, np.ma.MaskedArray):
            parts = [np.asarray(value.data), np.ma.getmaskarray(value), np.asarray(value.fill_value)]
            return {"masked": [self._leaf(part, key) for part in parts]}
        array = np.asarray(_key_data(value))
        if not is_own_kind(array.dtype):
            # It would come back as raw bytes.
            return {"bits": [array.dtype.name, self._shelf.put_array(key, array.view(f"u{array.itemsize}"))]}
        node = self._shelf.put_array(key, array)
        return {"scalar": node} if isinstance(value, np.generic) else node

    def _tensor(self, tensor: Any, key: str) -> Any:
        kind = tensors.kind_of(tensor)
        if kind != "dense":
            about, parts = tensors.parts_of(tensor, kind)
            return {"composite": [kind, about, [self._tensor(part, f"{key}.{n}") for n, part in enumerate(parts)]]}
        plain = tensors.dense(tensor)
        if self._shelf.has_kind(plain):
            return {"tensor": self._shelf.put(key, plain)}
        bits = self._shelf.put(key, tensors.bits_of(plain))
        return {"tensor_bits": [tensors.name_of(plain.dtype), list(plain.shape), bits]}


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


def take_apart(state: Any, shelf: Shelf, *, holders: bool = False) -> Any:
    """A state as a tree that JSON can hold, with its arrays on a shelf.

    Args:
        state: Anything.
        shelf: Takes the arrays.
        holders: Whether objects with ``state_dict()`` are taken apart too.

    Raises:
        TypeError: something in it cannot be held; the message gives its dotted key.
    """
    return _Taker(shelf, holders).of(state, "state")


def put_together(tree: Any, fetch: Callable[[Any], Any] = lambda held: held) -> Any:
    """The state that `take_apart` was given; dataclasses come back as namespaces, named tuples as tuples.

    Args:
        tree: The tree.
        fetch: Returns the array or tensor for which something stands in the tree.

    Raises:
        ValueError: it is something else.
    """
    try:
        return _put(tree, fetch)
    except Exception as error:
        # Whatever numpy or torch raise, it is a bad file.
        raise ValueError(f"a model state must be one that was packed, got a damaged one ({error}).") from error


def _put(tree: Any, fetch: Callable[[Any], Any]) -> Any:
    if _is_plain(tree):
        return tree
    if not isinstance(tree, Mapping):
        raise ValueError(f"a part of the kind {type(tree).__name__}")
    [(kind, held)] = tree.items()
    if kind in _PAIRS:
        return _PAIRS[kind]([(name, _put(part, fetch)) for name, part in held])
    if kind in _ITEMS:
        return _ITEMS[kind](_put(part, fetch) for part in held)
    if kind in _OTHERS:
        return _OTHERS[kind](held)
    if kind == "bytes":
        return np.asarray(fetch(held)).tobytes()
    return _put_array(kind, held, fetch)


def _put_array(kind: str, held: Any, fetch: Callable[[Any], Any]) -> Any:
    if kind == "array":
        array = fetch(held)
        return _checked(array.numpy() if tensors.is_tensor(array) else array, np.ndarray)
    if kind == "npy":
        file = io.BytesIO(fetch(held).numpy().tobytes())
        return np.lib.format.read_array(file, allow_pickle=False)
    if kind == "scalar":
        return _checked(_put(held, fetch), np.ndarray)[()]
    if kind == "bits":
        return of_other_kind(held[0], _put(held[1], fetch))
    if kind == "masked":
        values, mask, fill = (_checked(_put(part, fetch), np.ndarray) for part in held)
        if values.shape != mask.shape or values.itemsize != fill.nbytes:
            raise ValueError(f"a mask of {mask.shape} and a filling of {fill.nbytes} bytes for {values.shape}")
        return np.ma.MaskedArray(values, mask, fill_value=fill)
    if kind == "tensor":
        return as_tensor(fetch(held))
    if kind == "tensor_bits":
        name, shape, bits = held
        return tensors.from_bits(as_tensor(fetch(bits)), name, shape)
    if kind == "composite":
        what, about, parts = held
        made = [_put(part, fetch) for part in parts]
        if not all(tensors.is_tensor(part) and tensors.kind_of(part) == "dense" for part in made):
            raise ValueError(f"a tensor of the kind {what!r} of others than dense ones")
        return tensors.make(what, about, made)
    raise ValueError(f"a part of the kind {kind!r}")


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
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
    """A state in the form that `codec.write` takes; its arrays are not copied. See `take_apart`."""
    return {"version": VERSION, "tree": take_apart(state, _Tree(), holders=holders)}


def unpack(packed: Any) -> Any:
    """What `pack` was given, from what the codec has read.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(packed, Mapping):
        raise ValueError(f"a model state must be one that was packed, got {type(packed).__name__}.")
    if packed.keys() == {"version", "tree"}:
        if packed["version"] != VERSION:
            raise ValueError(f"a model state must be of version {VERSION}, got {packed['version']!r}.")
        return put_together(packed["tree"])
    return put_together(_renewed(packed))


def _renewed(packed: Any) -> Any:
    """Return the tree of a state that commit 7ddda59 packed, in the form of today."""
    if not isinstance(packed, Mapping):
        return packed
    kind, values = packed.get("kind"), packed.get("values")
    if kind in _PAIRS and isinstance(values, list):
        return {kind: list(zip(packed["keys"], map(_renewed, values), strict=True))}
    if kind == "tensor" and packed.get("shape") is not None:
        return {"tensor_bits": [packed["dtype"], packed["shape"], values]}
    if isinstance(values, list):
        return {kind: list(map(_renewed, values))}
    return {kind: {"array": values} if kind == "scalar" else values}


def size_of(packed: Any) -> int:
    """Bytes of the arrays in a packed state."""
    if isinstance(packed, Mapping):
        return sum(map(size_of, packed.values()))
    if isinstance(packed, (list, tuple)):
        return sum(map(size_of, packed))
    return int(getattr(packed, "nbytes", 0))
