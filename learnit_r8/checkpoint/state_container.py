"""Model states as the codec holds them: arrays of numpy and torch in nested dicts, lists and tuples of plain values."""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 2**22

_DICTS: dict[str, Any] = {"dict": dict, "ordered": OrderedDict}
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple}


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


def pack(value: Any, key: str = "state") -> Any:
    """A model state in the form that `codec.write` takes; its arrays are not copied.

    Raises:
        TypeError: something in it cannot be held; the message gives its dotted key.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return {"kind": "scalar", "values": _Array(np.asarray(value))}
    if type(value) is np.ndarray and not value.dtype.hasobject and not value.dtype.names:
        return {"kind": "array", "values": _Array(value)}
    for name, kind in _DICTS.items():
        if type(value) is kind:
            keys = [_plain_key(each, key) for each in value]
            return {"kind": name, "keys": keys, "values": [pack(v, f"{key}.{k}") for k, v in value.items()]}
    for name, kind in _SEQUENCES.items():
        if type(value) is kind:
            return {"kind": name, "values": [pack(item, f"{key}.{place}") for place, item in enumerate(value)]}
    tensor = _packed_tensor(value)
    if tensor is None:
        raise TypeError(
            f"{key} must be an array, a tensor, a plain value, or a dict, list or tuple, got {type(value)}."
        )
    return tensor


def _plain_key(value: Any, key: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{key} must have plain keys, got {value!r}.")


def _packed_tensor(value: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout is not torch.strided:
        return None
    if value.device.type == "meta" or value.is_quantized:
        return None
    plain = value.detach().cpu().contiguous()
    dtype = str(plain.dtype).removeprefix("torch.")
    try:
        values = plain.numpy()
    except TypeError:
        # Kinds that numpy has not, such as bfloat16, as bytes.
        shape = list(plain.shape)
        return {"kind": "tensor", "dtype": dtype, "shape": shape, "values": _Array(_bytes_of(plain, torch))}
    return {"kind": "tensor", "dtype": dtype, "shape": None, "values": _Array(values)}


def _bytes_of(tensor: Any, torch: Any) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def unpack(packed: Any) -> Any:
    """What `pack` was given, from what the codec has read.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(packed, Mapping):
        if isinstance(packed, (np.ndarray, list)):
            raise ValueError(f"a model state must be one that was packed, got {type(packed).__name__}.")
        return packed
    kind, values = packed.get("kind"), packed.get("values")
    if kind in _DICTS and isinstance(values, list):
        return _DICTS[kind](zip(packed["keys"], map(unpack, values), strict=True))
    if kind in _SEQUENCES and isinstance(values, list):
        return _SEQUENCES[kind](map(unpack, values))
    if isinstance(values, np.ndarray):
        if kind == "tensor":
            return _tensor_of(packed["dtype"], packed["shape"], values)
        if kind in ("array", "scalar"):
            return values[()] if kind == "scalar" else values
    raise ValueError(f"a model state must be one that was packed, got a part of the kind {kind!r}.")


def _tensor_of(dtype: str, shape: list[int] | None, values: NDArray[Any]) -> Any:
    # The state is one of torch, so its program has loaded that, or will.
    torch = importlib.import_module("torch")
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"a tensor must be of a kind that torch has, got {dtype!r}.")
    tensor = torch.from_numpy(values)
    return tensor if shape is None else tensor.view(kind).reshape(shape)


def size_of(packed: Any) -> int:
    """Bytes of the arrays in a packed state."""
    if isinstance(packed, _Array):
        return packed.nbytes
    if isinstance(packed, Mapping):
        return sum(map(size_of, packed.values()))
    if isinstance(packed, list):
        return sum(map(size_of, packed))
    return int(getattr(packed, "nbytes", 0))
