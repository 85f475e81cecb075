"""The one tree of state: how a model's state is walked, copied, searched for NaN, saved and put into a live one.

A state may be anything: arrays of numpy, torch, TensorFlow or JAX in nested dicts, lists, tuples, dataclasses,
namespaces and pytrees, and any other values among them. No framework is imported here. ``docs/files.md`` lists what a
state may hold. A file has it taken apart into plain values and named arrays. Nothing that is read is trusted: no class
is looked up by name, no code is run, and what does not fit together is refused.
"""

from __future__ import annotations

import cmath
import contextlib
import copy
import dataclasses
import functools
import importlib.util
import math
import operator
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..events.caller import warn
from . import kinds
from .codec import Labelled, decode, encode

Fault = Literal["NaN", "infinity", "number"]
"""What is wrong in an array, or that a single number is NaN."""

MOST_DEPTH = 200
"""Containers within each other. Real states have a dozen; one that holds itself has no end."""

_PLAIN = frozenset((type(None), bool, int, float, str))
_LEAVES = _PLAIN | {np.ndarray}


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
    if kind in _LEAVES:
        return None
    if kind is dict:
        keys = list(value)
        return Node("dict", value, lambda parts: dict(zip(keys, parts, strict=True)))
    if kind is list:
        return Node("list", dict(enumerate(value)), list)
    if kinds.is_tensor(value):
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
    names, shell = list(fields), value

    def build(parts: Iterable[Any]) -> Any:
        new = copy.copy(shell)
        for name, part in zip(names, parts, strict=True):
            # Also of a frozen one.
            object.__setattr__(new, name, part)
        return new

    shell = build([None] * len(names))
    return Node("namespace", fields, build)


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
    equinox: Any = sys.modules.get("equinox")
    if equinox is not None and isinstance(value, equinox.nn.State):
        # It counts its parts; its own keys tell which are statistics of norms, but for those of no model.
        names = [key if isinstance(key, str) else name for key, name in zip(value._state, names, strict=True)]
    parts = dict(zip(names, (part for _, part in pairs), strict=True))
    return Node("dict", parts, lambda parts: structure.unflatten(list(parts)))


def nnx_of(value: Any) -> Any:
    """Flax's ``nnx`` if this is one of its objects, which change in place; else None."""
    nnx: Any = sys.modules.get("flax.nnx")
    return nnx if nnx is not None and isinstance(value, getattr(nnx, "Pytree", nnx.Module)) else None


def is_module(value: Any) -> bool:
    """Whether an object is a network of torch, NNX or Equinox, whose arrays are weights and statistics."""
    return any(each.__name__ == "Module" for each in type(value).__mro__)


def is_of_optax(value: Any) -> bool:
    """Whether a value is the state of an optimizer of optax."""
    is_chain = type(value) is tuple and any(map(is_of_optax, value))
    return is_chain or type(value).__module__.partition(".")[0] == "optax"


def is_holder(value: Any) -> bool:
    """Whether an object tells its state by ``state_dict()``; ``nnx.Rngs`` has an attribute of any name."""
    return nnx_of(value) is None and hasattr(value, "state_dict")


def map_leaves(change: Callable[..., Any], state: Any, *path: Any, holders: bool = False) -> Any:
    """The same nest with other leaves.

    Args:
        change: ``(leaf, *path)``, returns what takes its place.
        state: The nest.
        *path: Keys that lead to it.
        holders: Whether objects with ``state_dict()`` are looked into.
    """
    node = open_node(state, holders=holders)
    if node is None:
        return change(state, *path)
    _check_depth(len(path), ".".join(map(str, path[:8])))
    return node.build([map_leaves(change, part, *path, name, holders=holders) for name, part in node.parts.items()])


def leaves(state: Any, path: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    """All leaves of a nest with their dotted keys; a bare leaf is called "state"."""
    node = open_node(state)
    if node is None:
        return [(path[1:] or "state", state)]
    _check_depth(depth, path[1:])
    found: list[tuple[str, Any]] = []
    for name, part in node.parts.items():
        key = f"{path}.{name}"
        found += [(key[1:], part)] if type(part) in _PLAIN else leaves(part, key, depth + 1)
    return found


def shapes_of(state: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of all arrays by their dotted keys."""
    return {key: tuple(leaf.shape) for key, leaf in leaves(state) if hasattr(leaf, "shape")}


def clone(state: Any) -> Any:
    """Make an independent copy.

    Raises:
        TypeError: something in it cannot be copied; the message gives its dotted key.
    """
    return copy_into(None, state)


def copy_into(buffer: Any, state: Any, *, to_host: bool = False) -> Any:
    """Copy ``state``, reusing the memory of an earlier copy where shapes, types and keys are the same.

    Args:
        buffer: An earlier result of this function, which must not be used afterwards; or None.
        state: What to copy. numpy arrays and dense torch tensors are copied into the buffer; all else to new memory.
        to_host: Whether to copy what is on a GPU to pinned memory of the host.

    Returns:
        The copy. It shares no memory with ``state``; an array that occurs twice there is one array here too.

    Raises:
        TypeError: something in it cannot be copied; the message gives its dotted key.
    """
    torch = sys.modules.get("torch")
    with contextlib.nullcontext() if torch is None else torch.no_grad():
        copied = _Copying(to_host=to_host).of(buffer, state, "state")
    if to_host and torch is not None and torch.cuda.is_initialized():
        # The copies run behind the step that was queued last; a backup that is not there yet must not be looked at.
        torch.cuda.current_stream().synchronize()
    return copied


def copy_to_host(state: Any) -> Any:
    """As `clone`, with everything that was on a GPU in pinned memory."""
    return copy_into(None, state, to_host=True)


def _place_of(array: Any) -> Any:
    """What is the same for arrays, or dense tensors, that are the same part of the same memory; None for empty ones."""
    if isinstance(array, np.ndarray):
        place = array.__array_interface__["data"][0]
        return (place, array.shape, array.strides, array.dtype.str) if array.size else None
    place = array.data_ptr() if array.numel() else 0
    return (place, array.device, array.shape, array.stride(), array.dtype) if place else None


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
            olds: Mapping[Any, Any] = {}
            if type(buffer) is type(value):
                olds = buffer if isinstance(buffer, dict) else getattr(open_node(buffer), "parts", olds)
                if node.kind in ("list", "tuple") and len(olds) != len(node.parts):
                    olds = {}
            return node.build(
                part if type(part) in _PLAIN else self.of(olds.get(name), part, f"{key}.{name}", depth + 1)
                for name, part in node.parts.items()
            )
        if type(value) is np.ndarray and not value.dtype.hasobject:
            return self._array(buffer, value, _place_of(value))
        try:
            kind = kinds.kind_of(value) if kinds.is_tensor(value) else ""
            if kind not in ("", "dense"):
                about, parts = kinds.parts_of(value, kind)
                return kinds.make(kind, about, [self._array(None, part) for part in parts])
            if kind and (self._to_host or type(value).__module__ in ("torch", "torch.nn.parameter")):
                return self._array(buffer, value, (place := _place_of(value)) and (place, type(value)))
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

    def _array(self, buffer: Any, value: Any, place: Any = None) -> Any:
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
            copied = kinds.copy_dense(buffer, value, to_host=self._to_host)
        self._used.add(id(copied))
        if place is not None:
            self._copies[place] = copied
        return copied


class Sum(NamedTuple):
    """Of the numbers of one array of floats: its leaf, by the dotted key, and the array that this is made of."""

    key: str
    leaf: Any
    array: Any
    total: complex


def sums_of(state: Any) -> list[Sum]:
    """The sums of all arrays of floats in a state, and of the single numbers that are NaN."""
    # All are started before the first is read, so a GPU can compute them asynchronously.
    known = [(key, leaf) for key, leaf in leaves(state) if type(leaf) not in _PLAIN or leaf != leaf]
    started = [(key, leaf, array, _sum(array)) for key, leaf in known for array in _floats_of(leaf)]
    return [Sum(key, leaf, array, _number(total)) for key, leaf, array, total in started]


def not_finite(state: Any) -> dict[str, Fault]:
    """Find the float arrays in a state that hold NaN or infinities, and single numbers that are NaN.

    Returns:
        The dotted key of each, and what is wrong in it. An infinite number is no fault: the best value so far is one.

    >>> not_finite({"net": [np.ones(2), np.array([1.0, np.inf])]})
    {'net.1': 'infinity'}
    """
    return faults_in(sums_of(state))


def faults_in(sums: Iterable[Sum]) -> dict[str, Fault]:
    """See `not_finite`; by sums.

    The numbers of an array are checked only if its sum is not finite: 6 ms in place of 266 ms for 25 million numbers.
    """
    found: dict[str, Fault] = {}
    for key, leaf, array, total in sums:
        if cmath.isfinite(total):
            continue
        is_number = isinstance(leaf, (float, complex, np.generic))
        numbers = kinds.to_numpy(array) if kinds.is_tensor(array) else np.asarray(array)
        # Of single numbers only NaN is a fault.
        if np.isnan(numbers).any():
            found[key] = "number" if is_number else "NaN"
        elif not is_number and not np.isfinite(numbers).all():
            found.setdefault(key, "infinity")
    return found


def num_float_arrays(state: Any) -> int:
    """How many leaves of a state are arrays of floats.

    >>> num_float_arrays({"w": np.ones(2), "lr": 0.1, "seen": np.zeros(3, int)})
    1
    """
    return sum(
        bool(getattr(leaf, "shape", ()) and next(_floats_of(leaf), None) is not None) for _, leaf in leaves(state)
    )


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


class Grown(NamedTuple):
    """An array with numbers that are far larger than any were before.

    Attributes:
        key: Its dotted key.
        num: How many numbers are beyond half the limit: an update that was too large leaves more than one there.
        size: Of so many.
        peak: The largest absolute value.
        before: That in the backup.
    """

    key: str
    num: int
    size: int
    peak: float
    before: float


STATISTIC = re.compile(r"(running|moving)_(mean|var)|\bbatch_stats\.|(^|[./])(mean|var)(\.value)?$|state_index")
"""Names of running statistics. A layer may be called `logvar` or `z_mean`."""


def weights_in(sums: Iterable[Sum], is_weight: Callable[[str], object]) -> dict[str, Any]:
    """The arrays of floats in a state by their dotted keys, but for empty ones and statistics.

    Args:
        sums: See `sums_of`.
        is_weight: Whether a key is one of those.
    """
    return {
        # Variables of TensorFlow have no methods.
        key: array if hasattr(array, "max") else np.asarray(array)
        for key, leaf, array, _ in sums
        if hasattr(leaf, "shape") and not STATISTIC.search(key) and is_weight(key)
        if math.prod(array.shape)
    }


def peaks_of(weights: Mapping[str, Any]) -> dict[str, float]:
    """The largest absolute value of each array; nothing is copied."""
    # Complex numbers are not ordered.
    real = {key: abs(each) if "complex" in str(each.dtype) else each for key, each in weights.items()}
    return {key: max(float(each.max()), -float(each.min())) for key, each in real.items()}


def sample_of(array: Any, count: int) -> NDArray[np.float64]:
    """At most so many of an array's numbers, evenly spread, as a copy; complex ones count twice.

    >>> sample_of(np.arange(6).reshape(2, 3), 3)
    array([0., 2., 4.])
    >>> sample_of(np.array([1 + 2j]), 3)
    array([1., 2.])
    """
    flat = array.reshape(-1)
    sample = _as_numpy(flat[:: -(-len(flat) // count)])
    sample = np.concatenate([sample.real, sample.imag]) if sample.dtype.kind == "c" else sample
    return np.array(sample, np.float64)


def moves(before: Any, after: Any, is_weight: Callable[[str], object]) -> dict[str, float]:
    """How far each array of weights has moved from one state to another: the root of the sum of the squared changes.

    >>> moves({"w": np.array([1.0, 2.0]), "n": 3}, {"w": np.array([4.0, 6.0]), "n": 4}, lambda key: True)
    {'w': 5.0}
    """
    old, new = (weights_in(sums_of(each), is_weight) for each in (before, after))
    pairs = {key: (each, new[key]) for key, each in old.items() if key in new}
    return {key: _distance(*pair) for key, pair in pairs.items() if pair[0].shape == pair[1].shape}


def _distance(old: Any, new: Any) -> float:
    is_tensor = kinds.is_tensor(old) and kinds.is_tensor(new) and old.device == new.device
    return length_of(new.detach() - old if is_tensor else _as_numpy(new) - _as_numpy(old))


def length_of(array: Any) -> float:
    """The root of the sum of the squares of an array's numbers.

    >>> length_of(np.array([[3.0], [4.0]]))
    5.0
    """
    if kinds.is_tensor(array) and array.dtype.itemsize >= 4:
        # Where it is: of those of a large model on a GPU nothing is copied.
        return float(array.detach().norm())
    return float(np.linalg.norm(_as_numpy(array)))


def outgrown(
    weights: Mapping[str, Any], peaks: Mapping[str, float], before: Mapping[str, float], *, least: float
) -> Grown | None:
    """The first array of weights that has grown by far since a backup, and beyond all others there; None if none has.

    Args:
        weights: See `weights_in`.
        peaks: Theirs, see `peaks_of`.
        before: Those in the backup; what was all 0 does not count.
        least: How many times as large it is, at least.

    >>> weights = {"w": np.array([0.1, 30.0]), "b": np.ones(1)}
    >>> outgrown(weights, peaks_of(weights), {"w": 0.2, "b": 1.0}, least=10)
    Grown(key='w', num=1, size=2, peak=30.0, before=0.2)
    """
    highest = max(before.values(), default=0.0)
    for key, peak in peaks.items():
        limit = max(highest, least * before.get(key, 0.0))
        if before.get(key) and peak > limit:
            array = weights[key]
            return Grown(key, int((abs(array) > limit / 2).sum()), math.prod(array.shape), peak, before[key])
    return None


LEAST_SIZE, ROW_SHARE, FEW_ROWS = 64, 0.5, 0.1
"""Numbers in an array of which one alone hardly grows by far, the share of a row beyond which it is trained as one, and
the share of rows that need not be, as a unit that dies meanwhile leaves few changes in its own. A bias or a scale is
trained by itself, and so is an entry of a table of values, or a weight of an input that is mostly 0."""


def is_trained_in_rows(array: Any, backup: Any) -> bool:
    """Whether an array of weights has changed since a backup in whole rows, one aside, and in two at least.

    >>> rows, entries = np.ones((16, 8)), np.eye(16, 8)
    >>> is_trained_in_rows(rows, 0 * rows), is_trained_in_rows(entries, 0 * entries)
    (True, False)
    """
    shape = getattr(backup, "shape", ())
    if math.prod(shape[1:]) < 2 or shape != array.shape or math.prod(shape) < LEAST_SIZE:
        return False
    now, before = _as_numpy(array), _as_numpy(backup)
    shares = (now != before).reshape(len(now), -1).mean(1)
    trained = np.delete(shares, np.unravel_index(abs(now).argmax(), now.shape)[0])
    trained = trained[trained > 0]
    return len(trained) > 1 and bool(np.quantile(trained, FEW_ROWS) > ROW_SHARE)


def _as_numpy(array: Any) -> NDArray[Any]:
    return kinds.to_numpy(array) if kinds.is_tensor(array) else np.asarray(array)


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
    elif kinds.is_tensor(leaf):
        yield from kinds.floats_of(leaf)
    elif isinstance(leaf, (np.ndarray, np.generic)) and not isinstance(leaf, np.ma.MaskedArray):
        if _is_float(leaf.dtype):
            values = np.asarray(leaf)
            yield values if is_own_kind(values.dtype) else values.astype(np.float32)
    elif hasattr(leaf, "shape") and _is_float(getattr(leaf, "dtype", None)):
        yield leaf


def is_own_kind(dtype: np.dtype[Any]) -> bool:
    """Whether a kind of numbers is numpy's own; bfloat16 and the like are not."""
    return dtype.type.__module__ == "numpy" or dtype.type is np.record


@functools.cache
def _is_float(dtype: Any) -> bool:
    # numpy puts the name of a dtype together at each call.
    name = str(getattr(dtype, "name", dtype))
    return "float" in name or "complex" in name


_is_half = functools.cache(lambda dtype: str(dtype).endswith("float16"))


def _sum(array: Any) -> Any:
    # The sum of many weights around one is beyond what half precision holds.
    is_half = _is_half(getattr(array, "dtype", ""))
    if isinstance(array, np.ndarray) or not hasattr(array, "sum"):
        values = np.asarray(array)
        with np.errstate(all="ignore"):
            return np.add.reduce(values, axis=None, dtype=np.float32 if values.dtype == np.float16 else None)
    if is_half:
        return array.sum(dtype=sys.modules["torch"].float32 if kinds.is_tensor(array) else np.float32)
    return array.sum()


def _number(total: Any) -> complex:
    return complex(total.item() if hasattr(total, "item") else total)


VERSION = 2
"""Of what `pack` returns."""

LABELS = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"}
"""Kinds of numbers that numpy lacks, as files call them."""

_PAIRS: dict[str, Callable[[Any], Any]] = {
    "dict": dict, "ordered": OrderedDict, "namespace": lambda pairs: SimpleNamespace(**dict(pairs)),
}  # fmt: skip
_ITEMS: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple}


class LeftOut(NamedTuple):
    """Stands in a state for a value that could not be copied or saved.

    Attributes:
        reason: Why.
        value: What this process can use all the same, and no file holds.
    """

    reason: str
    value: Any = None


_OTHERS: dict[str, Callable[[Any], Any]] = {
    "set": set, "frozenset": frozenset, "complex": lambda parts: complex(*parts), "dtype": kinds.dtype_of,
    "device": lambda name: importlib.import_module("torch").device(name),
    "left_out": lambda reason: LeftOut(str(reason)),
}  # fmt: skip


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
        if type(value) in _PLAIN:
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
            is_dense = kinds.is_tensor(value) and kinds.kind_of(value) == "dense"
            place = _place_of(value) if is_dense or type(value) is np.ndarray else None
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
        if kinds.is_tensor(value):
            return self._tensor(value, key)
        if isinstance(value, (set, frozenset)):
            return {type(value).__name__: [self.of(item, key) for item in value]}
        if isinstance(value, bytes):
            return {"bytes": Labelled(np.frombuffer(value, np.uint8), key)}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if _torch_kind(value):
            return {_torch_kind(value): kinds.name_of(value)}
        array = np.asarray(sys.modules["jax"].random.key_data(value) if is_key(value) else value)
        if not is_own_kind(array.dtype):
            # It would come back as raw bytes.
            bits, kind = array.view(f"u{array.itemsize}"), LABELS.get(array.dtype.name, "")
            return {"bits": [array.dtype.name, {"array": Labelled(bits, key, kind, bits.shape)}]}
        node = {"array": Labelled(array, key)}
        return {"scalar": node} if isinstance(value, np.generic) else node

    def _tensor(self, tensor: Any, key: str) -> Any:
        kind = kinds.kind_of(tensor)
        if kind != "dense":
            about, parts = kinds.parts_of(tensor, kind)
            return {"composite": [kind, about, [self._tensor(part, f"{key}.{n}") for n, part in enumerate(parts)]]}
        plain, name, shape = kinds.dense(tensor), kinds.name_of(tensor.dtype), tuple(tensor.shape)
        if kinds.NUMPY_HAS.fullmatch(name):
            return {"tensor": Labelled(plain.numpy(), key)}
        bits = Labelled(kinds.bits_of(plain).numpy(), key, LABELS.get(name, ""), shape)
        return {"tensor_bits": [name, list(shape), bits]}


def why_not(value: Any, node: Node | None) -> str:
    """What a leaf, or a node with such keys, is called if it cannot be held; "" if it can."""
    if node is not None:
        is_odd = node.kind in _PAIRS and not _PLAIN.issuperset(map(type, node.parts))
        return f"the key {next(name for name in node.parts if type(name) not in _PLAIN)!r}" if is_odd else ""
    if kinds.is_tensor(value):
        return kinds.why_not(value)
    if type(value) in _PLAIN or isinstance(value, (bytes, complex, LeftOut)) or _torch_kind(value):
        return ""
    if isinstance(value, (set, frozenset)) and all(type(each) in _PLAIN for each in value):
        return ""
    if hasattr(value, "__array__") and hasattr(value, "dtype") and not isinstance(value, np.ma.MaskedArray):
        return "an array of objects" if getattr(value.dtype, "hasobject", False) else ""
    return f"{type(value).__name__} {value!r}"[:100]


def _torch_kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device") else ""


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
        if kinds.is_tensor(state) and kinds.is_refused(state):
            raise TypeError(
                f"{key[1:] or 'state'} must be a dense or sparse tensor of numbers of a byte or more, got {reason}; "
                "keep it out of the state (register_buffer(..., persistent=False)), or hold it as a dense tensor."
            )
        found[key[1:]] = reason
        return LeftOut(reason)
    if node is None or isinstance(state, LeftOut):
        return state
    parts = [
        part if type(part) in _PLAIN else leave_out(part, found, f"{key}.{name}", holders=holders)
        for name, part in node.parts.items()
    ]
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


def _put(tree: Any, made: list[Any]) -> Any:
    """A part of a state; ``made`` gets the arrays and tensors that others may be tied to, in their order."""
    if type(tree) in _PLAIN:
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
        return _checked(held)
    if kind == "scalar":
        return _put_array("array", held["array"])[()]
    if kind == "bits":
        name, bits = held[0], _checked(held[1]["array"])
        # Numbers of a kind that numpy itself has not, such as bfloat16; a tensor where only torch has it.
        if importlib.util.find_spec("ml_dtypes") is None:
            return kinds.from_bits(as_tensor(bits), name, bits.shape)
        other = getattr(importlib.import_module("ml_dtypes"), name, None)
        if not (isinstance(other, type) and issubclass(other, np.generic)):
            raise ValueError(f"numbers of the kind {name!r}")
        return bits.view(other)
    if kind == "tensor":
        return as_tensor(held)
    if kind == "tensor_bits":
        name, shape, bits = held
        return kinds.from_bits(as_tensor(_checked(bits).reshape(-1).view(np.uint8)), name, shape)
    if kind == "composite":
        what, about, parts = held
        made = [_put_array(each, part) for node in parts for each, part in node.items()]
        if not all(kinds.is_tensor(part) and kinds.kind_of(part) == "dense" for part in made):
            raise ValueError(f"a tensor of the kind {what!r} of others than dense ones")
        return kinds.make(what, about, made)
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


PACKED = frozenset({"version", "tree"})
"""The entries of a packed state."""


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
    """What `pack` was given, from what the codec has read; dataclasses come back as namespaces, named tuples as tuples.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(packed, Mapping) or packed.keys() != PACKED or packed["version"] != VERSION:
        raise ValueError(f"a model state must be one that was packed in version {VERSION}, got {str(packed)[:80]}.")
    try:
        return _put(packed["tree"], [])
    except Exception as error:
        # Whatever numpy or torch raise, it is a bad file.
        raise ValueError(f"a model state must be one that was packed, got a damaged one ({error}).") from error


def to_bytes(state: Any) -> NDArray[np.uint8]:
    """uint8[any], a state as `pack` takes it in the form of a file, to be kept within another one."""
    return np.frombuffer(encode(pack(state)), np.uint8)


def from_bytes(content: Any) -> Any:
    """What `to_bytes` was given.

    Raises:
        ValueError: it is something else.
    """
    return unpack(decode(np.asarray(content).tobytes()))


def size_of(value: Any) -> int:
    """Bytes of the arrays in a batch, or in a packed state."""
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if isinstance(value, Labelled):
        return int(value.values.nbytes)
    if isinstance(value, (list, tuple)):
        return sum(map(size_of, value))
    if kinds.is_tensor(value) and (kind := kinds.kind_of(value)) not in ("dense", ""):
        # torch knows no number of bytes of some.
        return sum(part.nbytes for part in kinds.parts_of(value, kind)[1])
    return int(getattr(value, "nbytes", 0))


def fit(saved: Any, template: Any, where: str = "state") -> Any:
    """A state like ``template``, with the values of a saved one.

    Args:
        saved: What `unpack` returned.
        template: A state of the same structure; objects with ``load_state_dict`` are changed in place. What was left
            out stays as it is here.
        where: Name of the place, for messages.

    Raises:
        ValueError: structures or shapes differ; the message names the place.
    """
    if isinstance(saved, LeftOut):
        return template
    if is_holder(template) and hasattr(template, "load_state_dict"):
        own = template.state_dict()
        if hasattr(template, "param_groups") and isinstance(saved, Mapping) and "state" in own:
            # A fresh optimizer of torch has no state: that of the file counts.
            saved, mine = dict(saved), {name: part for name, part in own.items() if name != "state"}
            template.load_state_dict({"state": saved.pop("state", {}), **fit(saved, mine, where)})
        else:
            template.load_state_dict(fit(saved, own, where))
        return template
    if (nnx := nnx_of(template)) is not None:
        nnx.update(template, fit(saved, nnx.state(template), where))
        return template
    node, given = open_node(template), open_node(saved)
    if node is None:
        if given is not None:
            raise ValueError(f"{where} must be saved as one value, got {sorted(map(str, given.parts))}.")
        return _fit_leaf(saved, template, where)
    parts = {str(name): part for name, part in node.parts.items()}
    if given is None:
        raise ValueError(f"{where} must be saved as {sorted(parts)}, got {type(saved).__name__}.")
    names = [*map(str, given.parts)]
    # Equinox' statistics were saved by numbers before they had names.
    was_counted = names == [*map(str, range(len(names)))] and not parts.keys() & names
    if len(names) == len(parts) and (given.kind in ("list", "tuple") or was_counted):
        names = [*parts]
    found = dict(zip(names, given.parts.values(), strict=True))
    # What has no leaves, such as an optimizer's empty state, is saved as an empty dictionary or not at all.
    wanted = [name for name, part in parts.items() if name in found or not _is_empty(part)]
    if set(wanted) != set(found):
        raise ValueError(f"{where} must be saved with {sorted(wanted)}, got {sorted(found)}.")
    return node.build(
        [fit(found[name], part, f"{where}.{name}") if name in found else part for name, part in parts.items()]
    )


def _is_empty(value: Any) -> bool:
    node = open_node(value, holders=True)
    return node is not None and all(map(_is_empty, node.parts.values()))


def _fit_leaf(saved: Any, template: Any, where: str) -> Any:
    if not (isinstance(saved, np.ndarray) or kinds.is_tensor(saved)):
        return saved
    if is_key(template):
        random = importlib.import_module("jax").random
        return random.wrap_key_data(saved, impl=random.key_impl(template))
    shape = getattr(template, "shape", ())
    if tuple(shape) != tuple(saved.shape):
        is_of_devices = tuple(shape[1:]) == tuple(saved.shape[1:]) and len(getattr(template, "devices", set)()) > 1
        hint = "; pmap keeps a copy for each device, so go on with as many" if is_of_devices else ""
        raise ValueError(f"{where} must be saved with the shape {tuple(shape)}, got {tuple(saved.shape)}{hint}.")
    if kinds.is_tensor(template):
        return as_tensor(saved).to(template.device)
    jax: Any = sys.modules.get("jax")
    if jax is None or isinstance(template, np.ndarray) or kinds.is_tensor(saved):
        return saved
    is_placed = isinstance(template, jax.Array) and template.committed
    if is_placed and not template.is_fully_addressable:
        return jax.make_array_from_callback(saved.shape, template.sharding, lambda index: saved[index])
    array = jax.numpy.array(saved)
    return jax.device_put(array, template.sharding) if is_placed else array


def fill(saved: Any, live: Any) -> Any:
    """A state with the live values in the places of those that were left out, and with the live state's own classes.

    Args:
        saved: A copy of a state, or what `unpack` returned.
        live: The present state; it may have other parts.
    """
    if isinstance(saved, LeftOut):
        return live
    node, own = open_node(saved), open_node(live)
    if node is None or own is None:
        return saved
    build, others = node.build, own.parts
    if node.kind in ("tuple", "namespace") and (own.kind, len(others)) == (node.kind, len(node.parts)):
        build, others = own.build, dict(zip(node.parts, others.values(), strict=True))
    return build([fill(part, others.get(name)) for name, part in node.parts.items()])
