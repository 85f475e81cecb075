"""Kinds of values: torch's tensors, which of them a state may hold and how to rebuild them; and what a file may give.

torch is not imported here: where a state has tensors, its program has.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import is_number

_COMPRESSED = {
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}
NUMPY_HAS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
"""Names of the kinds of numbers that numpy has, too."""


_is_packed = functools.cache(lambda dtype: re.fullmatch(r"u?int[1-7]", name_of(dtype)) is not None)
"""Whether numbers are integers of less than 8 bits."""


@functools.cache
def _computable(dtype: Any) -> Any:
    """The kind of floats in which torch can add up floats of this kind; None if they are none, or have no NaN."""
    name = name_of(dtype)
    if not (dtype.is_floating_point or dtype.is_complex) or name.startswith("float4"):
        return None
    return dtype_of("complex64" if name == "complex32" else "float32" if dtype.itemsize < 2 else name)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def name_of(kind: Any) -> str:
    """What torch calls a dtype or a layout, without its module."""
    return str(kind).removeprefix("torch.")


def kind_of(tensor: Any) -> str:
    """How a tensor is held: "dense", "coo" or "compressed"; "" if it cannot be."""
    torch = sys.modules["torch"]
    if tensor.is_meta or is_refused(tensor):
        return ""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided:
        return "dense"
    layout = name_of(tensor.layout)
    if hasattr(type(tensor), "__tensor_flatten__"):
        return ""
    if layout in _COMPRESSED:
        return "compressed"
    return {"strided": "dense", "sparse_coo": "coo"}.get(layout, "")


def is_refused(tensor: Any) -> bool:
    """Whether a tensor is of a kind that no training changes: quantized, nested, MKL-DNN, or below a byte."""
    return tensor.is_nested or tensor.is_quantized or tensor.is_mkldnn or _is_packed(tensor.dtype)


def why_not(tensor: Any) -> str:
    """Why a tensor cannot be held; "" if it can."""
    if kind_of(tensor):
        return ""
    where = "on the meta device" if tensor.is_meta else f"{type(tensor).__name__} of {tensor.dtype}, {tensor.layout}"
    kinds = [f"{kind} " for kind in ("nested", "quantized", "mkldnn") if getattr(tensor, f"is_{kind}")]
    return f"a {''.join(kinds)}tensor {where}"


def parts_of(tensor: Any, kind: str) -> tuple[list[Any], list[Any]]:
    """What a tensor that is not dense is made of.

    Args:
        tensor: The tensor.
        kind: What `kind_of` says.

    Returns:
        Plain values, and tensors; `make` takes both.
    """
    tensor = tensor.detach()
    if kind == "coo":
        return [list(tensor.shape), tensor.is_coalesced()], [tensor._indices(), tensor._values()]
    layout = name_of(tensor.layout)
    indices = [getattr(tensor, each)() for each in _COMPRESSED[layout]]
    return [layout, list(tensor.shape)], [*indices, tensor.values()]


def make(kind: Any, about: Sequence[Any], parts: Sequence[Any]) -> Any:
    """The tensor of which `parts_of` has returned the parts; nothing in them is trusted.

    Raises:
        ValueError, TypeError, RuntimeError: they do not fit together.
    """
    torch = importlib.import_module("torch")
    if kind == "coo":
        tensor = torch.sparse_coo_tensor(*parts, about[0], check_invariants=True)
        return tensor._coalesced_(True) if about[1] and _ascends(tensor._indices()) else tensor
    if kind == "compressed" and about[0] in _COMPRESSED:
        return torch.sparse_compressed_tensor(*parts, about[1], layout=getattr(torch, about[0]), check_invariants=True)
    raise ValueError(f"a tensor must be of a known kind, got {kind!r}.")


def _ascends(indices: Any) -> bool:
    """Whether indices are in order and no two are equal, as a coalesced tensor has them."""
    if indices.shape[1] < 2:
        return True
    steps = indices.diff(dim=1)
    # The first index that differs between neighbours decides.
    first = (steps != 0).int().argmax(0, keepdim=True)
    return bool((steps.gather(0, first) > 0).all())


def dtype_of(name: Any) -> Any:
    """The dtype of torch with this name.

    Raises:
        ValueError: there is none.
    """
    torch = importlib.import_module("torch")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a tensor must be of a kind that torch has, got {name!r}.")
    return dtype


def dense(tensor: Any) -> Any:
    """A dense tensor as a plain one on the host, in C order, of the values of this one."""
    plain = tensor.detach().as_subclass(sys.modules["torch"].Tensor)
    return plain.resolve_conj().resolve_neg().cpu().contiguous()


def bits_of(tensor: Any) -> Any:
    """uint8[any], the bytes of what `dense` returned."""
    flat = tensor.reshape(-1)
    # Of one number torch keeps any stride.
    return flat.as_strided(flat.shape, (1,)).view(sys.modules["torch"].uint8)


def from_bits(bits: Any, name: Any, shape: Any) -> Any:
    """The tensor of which `bits_of` has returned the bytes.

    Raises:
        ValueError, TypeError, RuntimeError: they do not fit together.
    """
    if isinstance(name, str) and name.startswith("q"):
        # Without its scale torch would read beyond its memory.
        raise ValueError(f"a quantized tensor must have a scale, got one of {name} without.")
    return bits.view(dtype_of(name)).reshape(shape)


def copy_dense(buffer: Any, tensor: Any, *, to_host: bool) -> Any:
    """A copy of a dense tensor, in the memory of ``buffer`` where that fits; call it without gradients.

    Args:
        buffer: Any value.
        tensor: The tensor.
        to_host: Whether to copy to the host; what is on a GPU is copied to pinned memory, behind what is queued there.
    """
    torch = sys.modules["torch"]
    if to_host:
        if not (is_tensor(buffer) and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype)):
            buffer = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
    elif type(buffer) is not type(tensor) or buffer.shape != tensor.shape or _form(buffer) != _form(tensor):
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        return tensor.detach().clone().requires_grad_(tensor.requires_grad and tensor.is_leaf)
    return buffer.copy_(tensor, non_blocking=to_host)


def _form(tensor: Any) -> Any:
    return tensor.dtype, tensor.device, tensor.is_leaf and tensor.requires_grad, tensor.is_inference()


def floats_of(tensor: Any) -> Iterator[Any]:
    """The dense tensors of floats that a tensor is made of, in kinds that torch can compute with."""
    kind = kind_of(tensor)
    if kind == "dense":
        wide = _computable(tensor.dtype)
        if wide is not None:
            yield tensor.detach() if wide is tensor.dtype else tensor.detach().to(wide)
    elif kind:
        for part in parts_of(tensor, kind)[1]:
            yield from floats_of(part)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """The numbers of a tensor that `floats_of` has yielded."""
    return np.asarray((tensor.float() if tensor.dtype.itemsize < 4 else tensor).cpu())


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
