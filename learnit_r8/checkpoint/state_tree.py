"""The one tree of state: how a model's state is walked, copied, searched for NaN and compared.

A state may be anything: arrays of numpy, torch, TensorFlow or JAX in nested dicts, lists, tuples, dataclasses,
namespaces and pytrees, and any other values among them. No framework is imported here. ``docs/files.md`` lists what a
state may hold.
"""

from __future__ import annotations

import cmath
import copy
import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np

from . import tensors

Fault = Literal["NaN", "infinity", "number"]
"""What is wrong in an array, or that a single number is NaN."""

MOST_DEPTH = 200
"""Containers within each other. Real states have a dozen; one that holds itself has no end."""

_LEAVES = (type(None), bool, int, float, str, np.ndarray)


class Node(NamedTuple):
    """A container.

    Attributes:
        kind: "dict", "ordered", "list", "tuple" or "namespace".
        parts: What it holds, by key or number.
        build: Makes a container like it of other parts, in the order of these; it holds on to no part.
    """

    kind: str
    parts: Mapping[Any, Any]
    build: Callable[[Iterable[Any]], Any]


def open_node(value: Any, *, holders: bool = False) -> Node | None:
    """A container and its parts; None for a leaf.

    Args:
        value: Anything.
        holders: Whether an object with ``state_dict()``, or one of Flax's ``nnx``, is opened as its state.
    """
    kind = type(value)
    if kind in _LEAVES or tensors.is_tensor(value):
        return None
    if holders and is_holder(value) and not isinstance(value, (Mapping, list, tuple)):
        return open_node(value.state_dict(), holders=True)
    if holders and (nnx := nnx_of(value)) is not None:
        value = nnx.state(value)
    if isinstance(value, Mapping):
        return _open_mapping(value)
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", range(len(value)))
        build = kind._make if hasattr(kind, "_make") else kind
        return Node("list" if isinstance(value, list) else "tuple", dict(zip(names, value, strict=True)), build)
    if isinstance(value, (np.generic, np.ndarray)):
        return None
    return _open_pytree(value) or _open_record(value)


def _open_mapping(value: Mapping[Any, Any]) -> Node | None:
    kind, names = type(value), list(value)
    if not isinstance(value, dict):
        make: Any = kind
        try:
            made = make({})
        except Exception:
            return None
        if not isinstance(made, Mapping) or len(made):
            return None
        return Node("dict", dict(value), lambda parts: make(dict(zip(names, parts, strict=True))))
    if kind is dict:
        return Node("dict", value, lambda parts: dict(zip(names, parts, strict=True)))
    # torch attaches version numbers (_metadata) to a state_dict; others have a default.
    shell: Any = kind() if kind is OrderedDict else copy.copy(value)
    shell.clear()
    about = getattr(value, "__dict__", {})

    def build(parts: Iterable[Any]) -> Any:
        new = copy.copy(shell)
        new.update(zip(names, parts, strict=True))
        for name, part in copy.deepcopy(about).items():
            setattr(new, name, part)
        return new

    return Node("ordered" if kind is OrderedDict else "dict", value, build)


def _check_depth(depth: int, key: str) -> None:
    if depth > MOST_DEPTH:
        raise ValueError(
            f"state must be nested at most {MOST_DEPTH} deep, and must not hold itself, got more at {key[:60]}..."
        )


def _open_record(value: Any) -> Node | None:
    """The fields of a dataclass or a namespace."""
    if isinstance(value, SimpleNamespace):
        names = list(vars(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        return None
    fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
    shell = _with_fields(value, dict.fromkeys(fields))
    return Node("namespace", fields, lambda parts: _with_fields(shell, dict(zip(fields, parts, strict=True))))


def _with_fields(record: Any, fields: Mapping[str, Any]) -> Any:
    new = copy.copy(record)
    for name, value in fields.items():
        # Also of a frozen one.
        object.__setattr__(new, name, value)
    return new


def _open_pytree(value: Any) -> Node | None:
    jax: Any = sys.modules.get("jax")
    # JAX warns of what can be gone through once only.
    if jax is None or isinstance(value, (jax.Array, Iterator)):
        return None
    tree_util = jax.tree_util
    pairs, structure = tree_util.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
    if len(pairs) == 1 and pairs[0][1] is value:
        return None
    # One step of a path is an attribute, a key or a number.
    names = [
        str(next((getattr(path[0], each) for each in ("name", "key", "idx") if hasattr(path[0], each)), path[0]))
        for path, _ in pairs
    ]
    parts = dict(zip(names, (part for _, part in pairs), strict=True))
    return Node("dict", parts, lambda parts: structure.unflatten(list(parts)))


def nnx_of(value: Any) -> Any:
    """Flax's ``nnx`` if this is one of its objects, which change in place; else None."""
    nnx: Any = sys.modules.get("flax.nnx")
    return nnx if nnx is not None and isinstance(value, getattr(nnx, "Pytree", nnx.Module)) else None


def is_holder(value: Any) -> bool:
    """Whether an object tells its state by ``state_dict()``; ``nnx.Rngs`` has an attribute of any name."""
    return nnx_of(value) is None and hasattr(value, "state_dict")


def map_leaves(change: Callable[..., Any], state: Any, *path: Any) -> Any:
    """The same nest with other leaves.

    Args:
        change: ``(leaf, *path)``, returns what takes its place.
        state: The nest.
        *path: Keys that lead to it.
    """
    node = open_node(state)
    if node is None:
        return change(state, *path)
    _check_depth(len(path), ".".join(map(str, path[:8])))
    return node.build([map_leaves(change, part, *path, name) for name, part in node.parts.items()])


def leaves(state: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All leaves of a nest with their dotted keys; a bare leaf is called "state"."""
    node = open_node(state)
    if node is None:
        yield path[1:] or "state", state
        return
    _check_depth(depth, path[1:])
    for name, part in node.parts.items():
        yield from leaves(part, f"{path}.{name}", depth + 1)


def clone(state: Any) -> Any:
    """Make an independent copy.

    Raises:
        TypeError: something in it cannot be copied; the message gives its dotted key.
    """
    return copy_into(None, state)


def copy_into(buffer: Any, state: Any) -> Any:
    """Copy ``state``, reusing the memory of an earlier copy where shapes, types and keys are the same.

    Args:
        buffer: An earlier result of this function, which must not be used afterwards; or None.
        state: What to copy. numpy arrays and dense torch tensors are copied into the buffer; all else to new memory.

    Returns:
        The copy. It shares no memory with ``state``; an array that occurs twice there is one array here too.

    Raises:
        TypeError: something in it cannot be copied; the message gives its dotted key.
    """
    return _Copying(to_host=False).of(buffer, state, "state")


def copy_to_host(state: Any) -> Any:
    """As `clone`, with everything that was on a GPU in pinned memory."""
    return copy_to_host_into(None, state)


def copy_to_host_into(buffer: Any, state: Any) -> Any:
    """As `copy_into`, with everything that was on a GPU in pinned memory."""
    copied = _Copying(to_host=True).of(buffer, state, "state")
    # The copies run behind the step that was queued last; a backup that is not there yet must not be looked at.
    tensors.wait_for_copies()
    return copied


class _Copying:
    """The copying of one state."""

    def __init__(self, *, to_host: bool) -> None:
        self._to_host = to_host
        self._memo: dict[int, Any] = {}
        self._copies: dict[Any, Any] = {}
        self._used: set[int] = set()

    def of(self, buffer: Any, value: Any, key: str, depth: int = 0) -> Any:
        node = open_node(value)
        if node is not None:
            _check_depth(depth, key)
            old = open_node(buffer) if type(buffer) is type(value) else None
            is_alike = old is not None and (node.kind not in ("list", "tuple") or len(old.parts) == len(node.parts))
            olds = old.parts if old is not None and is_alike else {}
            parts = node.parts.items()
            return node.build([self.of(olds.get(name), part, f"{key}.{name}", depth + 1) for name, part in parts])
        if type(value) is np.ndarray and not value.dtype.hasobject:
            place = value.__array_interface__["data"][0], value.shape, value.strides, value.dtype
            return self._array(place, buffer, value)
        try:
            if tensors.is_tensor(value) and (kind := tensors.kind_of(value)):
                return self._tensor(kind, buffer, value)
            return copy.deepcopy(value, self._memo)
        except MemoryError:
            raise
        except Exception as error:
            if "allocate memory" in str(error) or "out of memory" in str(error):
                # torch says it with a RuntimeError.
                raise MemoryError(str(error)) from error
            raise TypeError(
                f"{key} must be something that can be copied, got {type(value).__name__} ({error})."
            ) from error

    def _tensor(self, kind: str, buffer: Any, value: Any) -> Any:
        torch = sys.modules["torch"]
        if kind != "dense":
            about, parts = tensors.parts_of(value, kind)
            return tensors.make(kind, about, [self._array(None, None, part) for part in parts])
        if type(value) not in (torch.Tensor, torch.nn.Parameter) and not self._to_host:
            return copy.deepcopy(value, self._memo)
        place = value.data_ptr(), str(value.device), value.shape, value.stride(), value.dtype, type(value)
        return self._array(place if value.numel() else None, buffer, value)

    def _array(self, place: Any, buffer: Any, value: Any) -> Any:
        # Arrays that share memory, such as tied weights, stay one array, unless only the buffer shared it.
        if place in self._copies:
            return self._copies[place]
        buffer = None if id(buffer) in self._used else buffer
        if isinstance(value, np.ndarray):
            is_alike = type(buffer) is np.ndarray and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
            copied = buffer if is_alike else np.array(value, order="K")
            if is_alike:
                np.copyto(copied, value)
        else:
            copied = tensors.copy_dense(buffer, value, to_host=self._to_host)
        self._used.add(id(copied))
        if place is not None:
            self._copies[place] = copied
        return copied


def not_finite(state: Any) -> dict[str, Fault]:
    """Find the float arrays in a state that hold NaN or infinities, and single numbers that are NaN.

    What a masked array hides is not looked at. Arrays are summed, and their numbers checked only if the sum is not
    finite: 6 ms in place of 266 ms for 25 million numbers.

    Returns:
        The dotted key of each, and what is wrong in it. An infinite number is no fault: the best value so far is one.

    >>> not_finite({"net": [np.ones(2), np.array([1.0, np.inf])]})
    {'net.1': 'infinity'}
    """
    # All sums are started before the first is read, so a GPU can compute them asynchronously.
    sums = [(key, leaf, array, _sum(array)) for key, leaf in leaves(state) for array in _floats_of(leaf)]
    found: dict[str, Fault] = {}
    for key, leaf, array, total in sums:
        if cmath.isfinite(_number(total)):
            continue
        is_number, numbers = isinstance(leaf, (float, complex, np.generic)), _as_numpy(array)
        if np.isnan(numbers).any():
            found[key] = "number" if is_number else "NaN"
        elif not is_number and not np.isfinite(numbers).all():
            found.setdefault(key, "infinity")
    return found


def growth(state: Any, backup: Any) -> dict[str, float]:
    """How much larger the numbers of each float array of a state are than they were in a backup.

    Args:
        state: A live state.
        backup: An earlier one.

    Returns:
        By dotted key, the ratio of their mean absolute values. Arrays that are missing in the backup, or zero there,
        and single numbers are left out.

    >>> growth({"w": np.full(4, 3.0), "step": 7.0}, {"w": np.ones(4), "step": 1.0})
    {'w': 3.0}
    """
    now, then = (
        {key: [_mean(array) for array in _floats_of(leaf)] for key, leaf in leaves(each) if getattr(leaf, "shape", ())}
        for each in (state, backup)
    )
    sizes = {
        key: (_number(sum(now[key])).real, _number(sum(then[key])).real) for key in now if now[key] and then.get(key)
    }
    return {key: new / old for key, (new, old) in sizes.items() if old > 0}


def _mean(array: Any) -> Any:
    """The mean absolute value of an array; unlike a sum, it does not overflow in half precision."""
    if isinstance(array, np.ndarray) or not hasattr(array, "mean"):
        with np.errstate(all="ignore"):
            return np.abs(np.asarray(array)).mean() if np.size(array) else 0.0
    return abs(array).mean()


def _floats_of(leaf: Any) -> Iterator[Any]:
    """The arrays of floats that a leaf is made of."""
    if isinstance(leaf, (float, complex)):
        yield np.asarray(leaf)
    elif tensors.is_tensor(leaf):
        yield from tensors.floats_of(leaf)
    elif isinstance(leaf, np.ma.MaskedArray):
        # A field has a mask of its own.
        yield from _fields_of(leaf, lambda field: field.compressed())
    elif isinstance(leaf, (np.ndarray, np.generic)):
        yield from _fields_of(leaf, np.asarray)
    elif hasattr(leaf, "shape") and _is_float(getattr(leaf, "dtype", None)):
        yield leaf


def _fields_of(array: Any, plain: Callable[[Any], Any]) -> Iterator[Any]:
    if array.dtype.names:
        for name in array.dtype.names:
            yield from _fields_of(array[name], plain)
    elif _is_float(array.dtype):
        values = plain(array)
        yield values if is_own_kind(values.dtype) else values.astype(np.float32)


def is_own_kind(dtype: np.dtype[Any]) -> bool:
    """Whether a kind of numbers is numpy's own; bfloat16 and the like are not."""
    return dtype.type.__module__ == "numpy" or dtype.type is np.record


def _is_float(dtype: Any) -> bool:
    name = str(getattr(dtype, "name", dtype))
    return "float" in name or "complex" in name


def _sum(array: Any) -> Any:
    # The sum of many weights around one is beyond what half precision holds.
    is_half = str(getattr(array, "dtype", "")).endswith("float16")
    if isinstance(array, np.ndarray) or not hasattr(array, "sum"):
        values = np.asarray(array)
        with np.errstate(all="ignore"):
            return np.add.reduce(values, axis=None, dtype=np.float32 if values.dtype == np.float16 else None)
    if is_half:
        return array.sum(dtype=sys.modules["torch"].float32 if tensors.is_tensor(array) else np.float32)
    return array.sum()


def _number(total: Any) -> complex:
    return complex(total.item() if hasattr(total, "item") else total)


def _as_numpy(array: Any) -> Any:
    return tensors.to_numpy(array) if tensors.is_tensor(array) else np.asarray(array)
