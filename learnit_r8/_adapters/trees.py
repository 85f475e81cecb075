"""Model states as nested dictionaries of plain arrays, for files: of pytrees, torch modules, numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

_NOTHING: Any = object()


def to_plain(state: Any) -> Any:
    """A state as dictionaries with text keys, arrays and plain values, as `checkpoint.encode` takes them.

    Args:
        state: A nest of dicts, lists, tuples and, where JAX is loaded, of any of its pytree nodes; or an object with
            ``state_dict()``; leaves are arrays, tensors, numbers, texts.

    Raises:
        TypeError: later, in ``encode``, a leaf has another type.
    """
    inner = _inner(state)
    if inner is None:
        return _plain_leaf(state)
    return {name: to_plain(value) for name, value in inner.items()}


def from_plain(plain: Any, template: Any, where: str = "state") -> Any:
    """A state like ``template``, with the values of a saved one.

    Args:
        plain: What `to_plain` made, perhaps read from a file.
        template: A state of the same structure; objects with ``load_state_dict`` are changed in place.
        where: Name of the place, for messages.

    Raises:
        ValueError: structures or shapes differ; the message names the place.
    """
    if hasattr(template, "load_state_dict"):
        template.load_state_dict(_holder_state(plain, template, where))
        return template
    if (nnx := nnx_of(template)) is not None:
        nnx.update(template, from_plain(plain, nnx.state(template), where))
        return template
    inner = _inner(template)
    if inner is None:
        return _leaf(plain, template, where)
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where} must be saved as {sorted(inner)}, got {type(plain).__name__}.")
    # What has no leaves, such as an optimizer's empty state, is saved as an empty dictionary or not at all.
    names = [name for name in inner if name in plain or not _is_empty(inner[name])]
    if set(names) != set(plain):
        raise ValueError(f"{where} must be saved with {sorted(names)}, got {sorted(plain)}.")
    values = {name: from_plain(plain[name], inner[name], f"{where}.{name}") for name in names}
    return builder_of(template)(values.get(name, value) for name, value in inner.items())


def _holder_state(plain: Any, holder: Any, where: str) -> Any:
    """What ``holder.load_state_dict`` takes; of a torch optimizer, whose fresh one has no state, that of the file."""
    own = holder.state_dict()
    if not (hasattr(holder, "param_groups") and isinstance(plain, Mapping) and "state" in own):
        return from_plain(plain, own, where)
    rest = from_plain(_without_state(plain), _without_state(own), where)
    return {"state": {int(number): _unfolded(values) for number, values in plain.get("state", {}).items()}, **rest}


def _without_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in saved.items() if name != "state"}


def _unfolded(plain: Any) -> Any:
    """A saved nest with torch tensors for arrays, and lists for what is numbered."""
    if isinstance(plain, Mapping) and "__bits__" not in plain:
        parts = {name: _unfolded(value) for name, value in plain.items()}
        return list(parts.values()) if all(name.isdecimal() for name in parts) else parts
    torch = sys.modules["torch"]
    is_array = isinstance(plain, (np.ndarray, Mapping))
    return _leaf(plain, torch.empty(_shape_of(plain)), "state") if is_array else plain


def _shape_of(plain: Any) -> tuple[int, ...]:
    array = plain["__bits__"] if isinstance(plain, Mapping) else plain
    return tuple(array.shape)


def readable(plain: Any) -> Any:
    """What `to_plain` made, without a template: the same nest, with every array as it was."""
    if not isinstance(plain, Mapping):
        return plain
    if "__bits__" in plain:
        return plain["__bits__"].view(np.dtype(plain["dtype"]))
    return {name: readable(value) for name, value in plain.items()}


def _is_empty(value: Any) -> bool:
    inner = _inner(value)
    return inner is not None and all(_is_empty(part) for part in inner.values())


def _inner(value: Any) -> dict[str, Any] | None:
    """The parts of a node, or of what an object with ``state_dict()`` returns, by name; None for a leaf."""
    if hasattr(value, "state_dict") and not isinstance(value, (Mapping, list, tuple)):
        return _inner(value.state_dict())
    nnx = nnx_of(value)
    return node_parts(value if nnx is None else nnx.state(value))


def node_parts(value: Any) -> dict[str, Any] | None:
    """The parts of a container by name, in order; None for a leaf."""
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if hasattr(value, "_fields"):
        return {name: getattr(value, name) for name in value._fields}
    if isinstance(value, (list, tuple)):
        return {str(number): part for number, part in enumerate(value)}
    return _pytree_parts(value)


def _pytree_parts(value: Any) -> dict[str, Any] | None:
    tree_util: Any = sys.modules.get("jax.tree_util")
    if tree_util is None or value is None or isinstance(value, (str, int, float, np.ndarray)):
        return None
    pairs, _ = tree_util.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
    if len(pairs) == 1 and pairs[0][1] is value:
        return None
    return {_name(path[0]): part for path, part in pairs}


def _name(key: Any) -> str:
    """What a step of a path is called: of an attribute, a dictionary, a sequence."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def builder_of(template: Any) -> Callable[[Iterable[Any]], Any]:
    """A function that makes a node like ``template`` of other parts, in the order of `node_parts`."""
    kind = type(template)
    if isinstance(template, Mapping):
        names = list(template)
        return lambda parts: kind(zip(names, parts, strict=True))
    if hasattr(template, "_fields"):
        return lambda parts: kind(*parts)
    if isinstance(template, (list, tuple)):
        return kind
    structure = sys.modules["jax.tree_util"].tree_structure(template, is_leaf=lambda part: part is not template)
    return lambda parts: structure.unflatten(list(parts))


def nnx_of(value: Any) -> Any:
    """Flax's ``nnx`` if this is one of its objects, which change in place; else None."""
    nnx: Any = sys.modules.get("flax.nnx")
    return nnx if nnx is not None and isinstance(value, getattr(nnx, "Pytree", nnx.Module)) else None


def is_key(leaf: Any) -> bool:
    """Whether it is one of JAX's typed random keys."""
    jax: Any = sys.modules.get("jax")
    return jax is not None and isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain_leaf(leaf: Any) -> Any:
    if is_key(leaf):
        leaf = sys.modules["jax"].random.key_data(leaf)
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
        if "bfloat16" in str(leaf.dtype):
            return {"__bits__": leaf.view(sys.modules["torch"].int16).numpy(), "dtype": "bfloat16"}
        return leaf.numpy()
    if hasattr(leaf, "__array__"):
        array = np.asarray(leaf)
        # Types that numpy itself does not know, such as bfloat16, would come back as raw bytes.
        if array.dtype.kind == "V" and array.dtype.names is None:
            return {"__bits__": array.view(f"u{array.dtype.itemsize}"), "dtype": array.dtype.name}
        return array
    return leaf


def _leaf(plain: Any, template: Any, where: str) -> Any:
    name = ""
    if isinstance(plain, Mapping) and "__bits__" in plain:
        plain, name = plain["__bits__"], plain["dtype"]
    elif isinstance(plain, Mapping):
        raise ValueError(f"{where} must be saved as one value, got {sorted(plain)}.")
    if not isinstance(plain, np.ndarray):
        return plain
    if is_key(template):
        random = sys.modules["jax"].random
        return random.wrap_key_data(plain, impl=random.key_impl(template))
    shape = getattr(template, "shape", ())
    if tuple(shape) != plain.shape:
        raise ValueError(f"{where} must be saved with the shape {tuple(shape)}, got {plain.shape}.")
    if hasattr(template, "detach"):
        torch = sys.modules["torch"]
        tensor = torch.from_numpy(plain.copy())
        return (tensor.view(torch.bfloat16) if name else tensor).to(template.device)
    if name:
        plain = plain.view(np.dtype(name))
    jax: Any = sys.modules.get("jax")
    if jax is None or isinstance(template, np.ndarray):
        return plain
    array = jax.numpy.array(plain)
    is_placed = isinstance(template, jax.Array) and template.committed
    return jax.device_put(array, template.sharding) if is_placed else array
