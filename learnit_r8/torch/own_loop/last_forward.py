"""A model's inputs and outputs in a batch, to tell whether an exception is due to values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..batches.loader import SampleError
from ..prepared import plain_model

NEVER_OF_VALUES = (MemoryError, LookupError, SampleError, torch.cuda.OutOfMemoryError)
"""Errors that no value explains."""


class LastForward:
    """The inputs and outputs of a model within a ``with`` block, and the outputs of its children.

    A model that computes its loss itself may raise before it returns, and a module of Lightning may call its children
    alone. Children may return infinities on purpose, as masks, so only NaN counts in theirs.

    Args:
        model: The model, as the loop calls it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._children = list(plain_model(model).children())
        self._seen: list[Any] = []
        self._inner: list[Any] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> LastForward:
        self._seen, self._inner = [], []
        self._hooks = [
            self._model.register_forward_pre_hook(lambda _, *given: self._seen.append(given), with_kwargs=True),
            self._model.register_forward_hook(lambda _, __, outputs: self._seen.append(outputs)),
            *(
                each.register_forward_hook(lambda _, __, outputs: self._inner.append(outputs))
                for each in self._children
            ),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen, self._inner = [], []

    def explains(self, error: Exception) -> bool:
        """Whether what was seen is not finite, so that an exception may be due to that."""
        if isinstance(error, NEVER_OF_VALUES):
            return False
        try:
            if any(bool(torch.isnan(each).any()) for each in _floats(self._inner)):
                return True
            return not all(bool(torch.isfinite(each).all()) for each in _floats(self._seen))
        except Exception:
            # A device that has failed answers no question.
            return False


def no_loss(model: torch.nn.Module) -> torch.Tensor:
    """A loss without a gradient, for a batch that is not to be learned from: NaN, which no mean of losses counts."""
    return torch.full((), math.nan, device=next(model.parameters()).device, requires_grad=True)


def _floats(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors of floats in a nest of containers."""
    if isinstance(tree, torch.Tensor):
        if tree.is_floating_point():
            yield tree.detach()
    elif isinstance(tree, Mapping):
        for each in tree.values():
            yield from _floats(each)
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _floats(each)
