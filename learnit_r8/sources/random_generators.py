"""The random generators of the process: a step that draws from them is only repeated exactly where they go back too."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def random_state() -> dict[str, Any]:
    """The states of the global generators of Python, numpy and, where it is loaded, torch, as arrays and numbers."""
    return state_of(hold_random_state())


def hold_random_state() -> tuple[Any, Any, Any]:
    """The same as `state_of` makes a state of, ten times as fast: for each step."""
    torch: Any = sys.modules.get("torch")
    own = None if torch is None or torch.cuda.is_initialized() else torch.get_rng_state()
    return torch_state() if own is None else own, np.random.get_state(legacy=True), random.getstate()


def state_of(held: tuple[Any, Any, Any]) -> dict[str, Any]:
    """What `hold_random_state` has returned, in the form of `random_state`."""
    own, (_, keys, position, has_gauss, gauss), (version, numbers, next_gauss) = held
    return {
        "torch": own if isinstance(own, list) else [own.numpy()],
        "numpy": [np.asarray(keys), int(position), int(has_gauss), float(gauss)],
        "python": [version, np.asarray(numbers, np.uint32), next_gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned, arrays or tensors."""
    set_torch_state(state["torch"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", _array(keys).astype(np.uint32), *rest))
    version, numbers, next_gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), next_gauss))


def random_state_of(saved: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """A state of the generators derived from that of another process, the same each time; they are left in it."""
    torch: Any = sys.modules["torch"]
    own = _array(saved["torch"][0]).tobytes()
    seed = int.from_bytes(hashlib.blake2b(own, digest_size=4, key=rank.to_bytes(8, "little")).digest(), "little")
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return random_state()


def _array(value: Any) -> NDArray[Any]:
    """An array, which may have been saved as a tensor."""
    return value.numpy() if hasattr(value, "numpy") else value  # type: ignore[no-any-return]


def torch_state() -> list[NDArray[np.uint8]]:
    """The states of torch's generators, that of the CPU first; none where torch is not loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return []
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [each.cpu().numpy().copy() for each in (torch.get_rng_state(), *devices)]


def set_torch_state(state: Sequence[Any]) -> None:
    """Put back what `torch_state` returned; on another number of devices that of the CPU alone."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not len(state):
        return
    own, *devices = (torch.from_numpy(_array(each).copy()) for each in state)
    torch.set_rng_state(own)
    if devices and len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(devices)
