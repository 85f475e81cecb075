"""Saved states in live ones: a state like the present one with the values of a file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import is_number
from . import tensors
from .state_form import LeftOut, as_tensor, is_key
from .state_tree import is_holder, nnx_of, open_node


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
        template.load_state_dict(_state_of_holder(saved, template, where))
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
    names = parts if given.kind in ("list", "tuple") and len(given.parts) == len(parts) else map(str, given.parts)
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


def _state_of_holder(saved: Any, holder: Any, where: str) -> Any:
    """What ``holder.load_state_dict`` takes; of a torch optimizer, whose fresh one has no state, that of the file."""
    own = holder.state_dict()
    if not (hasattr(holder, "param_groups") and isinstance(saved, Mapping) and "state" in own):
        return fit(saved, own, where)
    rest = fit(_without_state(saved), _without_state(own), where)
    return {"state": saved.get("state", {}), **rest}


def _without_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in saved.items() if name != "state"}


def _fit_leaf(saved: Any, template: Any, where: str) -> Any:
    if not (isinstance(saved, np.ndarray) or tensors.is_tensor(saved)):
        return saved
    if is_key(template):
        random = importlib.import_module("jax").random
        return random.wrap_key_data(saved, impl=random.key_impl(template))
    shape = getattr(template, "shape", ())
    if tuple(shape) != tuple(saved.shape):
        is_of_devices = tuple(shape[1:]) == tuple(saved.shape[1:]) and len(getattr(template, "devices", set)()) > 1
        hint = "; pmap keeps a copy for each device, so go on with as many" if is_of_devices else ""
        raise ValueError(f"{where} must be saved with the shape {tuple(shape)}, got {tuple(saved.shape)}{hint}.")
    if tensors.is_tensor(template):
        return as_tensor(saved).to(template.device)
    jax: Any = sys.modules.get("jax")
    if jax is None or isinstance(template, np.ndarray) or tensors.is_tensor(saved):
        return saved
    is_placed = isinstance(template, jax.Array) and template.committed
    if is_placed and not template.is_fully_addressable:
        return jax.make_array_from_callback(saved.shape, template.sharding, lambda index: saved[index])
    array = jax.numpy.array(saved)
    return jax.device_put(array, template.sharding) if is_placed else array


def fill(saved: Any, live: Any) -> Any:
    """A state with the live values in the places of those that were left out, and with the live state's own classes.

    Args:
        saved: A copy of a state, or what `put_together` returned.
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


MOST_WHOLE = 2**63


ANYTHING = object()
"""Stands among the ``known`` of `check_kinds` for what its reader checks."""


def check_kinds(
    given: Any, own: Any, known: Mapping[str, Any], where: str = "state", *, is_example: bool = False
) -> None:
    """Raise ValueError where a plain state from a file cannot stand for one of this program.

    A number must be a number, a whole one whole, a list as long, an array of the same kind and dimensions, and so on
    down. Entries that only one of them has are left to whoever reads them.

    Args:
        given: Nested dicts, lists, numbers, texts and arrays.
        own: A state of the same program, at any time; or an example.
        known: Examples for the places that are not alike at all times.
        where: What it is, for the message.
        is_example: Whether ``own`` is an example: in it ``[x]`` is any number of values like x, ``(x,)`` one or None,
            and a dict must have all of its keys.
    """
    if where in known:
        own, is_example = known[where], True
    if is_example and isinstance(own, tuple):
        if given is None:
            return
        [own] = own
    if own is ANYTHING:
        return
    if isinstance(own, Mapping):
        _require(isinstance(given, Mapping), "a dict", given, where)
        _require(not is_example or own.keys() <= given.keys(), f"a dict with {sorted(own)}", given, where)
        for name in given:
            if name in own or f"{where}.{name}" in known:
                check_kinds(given[name], own.get(name), known, f"{where}.{name}", is_example=is_example)
    elif isinstance(own, np.ndarray):
        is_alike = isinstance(given, np.ndarray) and given.ndim == own.ndim and _kind_of(given) == _kind_of(own)
        _require(is_alike, f"an array of {own.dtype} in {own.ndim} dimensions", given, where)
    elif isinstance(own, (list, tuple)):
        _require(isinstance(given, (list, tuple)), "a list", given, where)
        is_any = is_example and len(own) == 1
        _require(is_any or len(given) == len(own), f"a list of {len(own)}", given, where)
        for number, item in enumerate(given):
            check_kinds(item, own[0 if is_any else number], known, f"{where}.{number}", is_example=is_example)
    elif isinstance(own, bool):
        _require(isinstance(given, bool), "True or False", given, where)
    elif isinstance(own, int):
        is_whole = isinstance(given, int) and not isinstance(given, bool) and abs(given) < MOST_WHOLE
        _require(is_whole, "a whole number", given, where)
    elif isinstance(own, float):
        _require(is_number(given) and (isinstance(given, float) or abs(given) < MOST_WHOLE), "a number", given, where)
    else:
        _require(isinstance(given, type(own)), "None" if own is None else type(own).__name__, given, where)


def _kind_of(array: NDArray[Any]) -> str:
    """Return the kind of its numbers; files of torch store most unsigned kinds as signed ones."""
    return array.dtype.kind.replace("u", "i")


def _require(is_met: bool, kind: str, given: Any, where: str) -> None:
    if not is_met:
        raise ValueError(f"{where} must be {kind}, got {str(given)[:40]!r}.")
