"""What a trainer's step counts beside the weights, to leave out steps that are refused or computed once more."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

MOST = 4096
"""Numbers of a tensor, or entries of a dict or deque, up to which it is noted; what is larger is data, no count."""


def note_counts(owner: Any, *, skipped: str, all_of_it: bool = False) -> Callable[[], None]:
    """Note what a module or a trainer counts; returns a function that puts it back.

    These are the metrics of torchmetrics within a module, and the attributes that are lists, deques and dicts. Of a
    list what was added is taken off again.

    Args:
        owner: A LightningModule or a Trainer.
        skipped: How the names of attributes begin that are the framework's own.
        all_of_it: Whether attributes that are numbers, text and tensors belong to it: after a step that was computed
            once more. After one that is refused they stay, as a number may count the batches that a trainer hands out.

    >>> class Module:
    ...     pass
    >>> module = Module()
    >>> module.losses, module.step = [1.0], 1
    >>> put_back = note_counts(module, skipped="_")
    >>> module.losses.append(float("nan")); module.step += 1
    >>> put_back()
    >>> module.losses, module.step
    ([1.0], 2)
    """
    found = vars(owner)
    counts = {
        name: _note(each)
        for name, each in found.items()
        if not name.startswith(skipped) and (all_of_it or isinstance(each, (list, deque, dict)))
    }
    noted = [(found, counts)]
    for metric in owner.modules() if isinstance(owner, torch.nn.Module) else ():
        # By what it has, as this folder does not import torchmetrics.
        if isinstance(states := getattr(metric, "metric_state", None), dict):
            names = [*states, "_update_count", "_computed", "_forward_cache"]
            noted.append((vars(metric), {name: _note(getattr(metric, name, None)) for name in names}))

    def put_back() -> None:
        for attributes, parts in noted:
            attributes.update({name: put() for name, put in parts.items() if put is not None})

    return put_back


@contextlib.contextmanager
def uncounted(owner: Any, *, skipped: str) -> Iterator[None]:
    """A ``with`` block in which a step is computed once more: nothing counts a second time, however it ends."""
    put_back = note_counts(owner, skipped=skipped, all_of_it=True)
    try:
        yield
    finally:
        put_back()


def _note(value: Any) -> Callable[[], Any] | None:
    """What gives a value as it is now; None where it is no count."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return lambda: value
    if isinstance(value, torch.Tensor):
        if value.requires_grad or value.numel() > MOST:
            return lambda: value
        held = value.clone()
        return lambda: value.copy_(held)
    if isinstance(value, list):
        size = len(value)

        def cut() -> list[Any]:
            del value[size:]
            return value

        return cut
    if isinstance(value, deque) and len(value) <= MOST:
        entries = tuple(value)

        def refill() -> Any:
            value.clear()
            value.extend(entries)
            return value

        return refill
    if isinstance(value, dict) and len(value) <= MOST:
        parts = [(key, each, _note(each)) for key, each in value.items()]

        def rebuild() -> dict[Any, Any]:
            value.clear()
            value.update((key, each if put is None else put()) for key, each, put in parts)
            return value

        return rebuild
    return None
