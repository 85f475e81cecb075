"""A model that is run on trial: all that this changes is put back to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...sources.random_generators import random_state, set_random_state

_OWN = ("_parameters", "_buffers", "_modules")


def put_value(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Give a tensor an earlier value, and shape.

    Not through ``copy_()`` of its own: a graph that waits for ``backward()`` would be refused. One that was expanded
    has many numbers in one place, which no operation may write to: it has its value still.
    """
    if tensor.shape != value.shape:
        tensor.data = value.clone()
    elif all(stride or size < 2 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        tensor.data.copy_(value)


@contextlib.contextmanager
def untouched(model: torch.nn.Module, optimizer: Any) -> Iterator[None]:
    """A ``with`` block in which a model may run, forward and backward, and after which all is as it was.

    Buffers, random generators, gradients, modes and the attributes of modules are put back. Gradients are not copied:
    they are taken away meanwhile.
    """
    every = [
        *model.parameters(),
        *(each for group in getattr(optimizer, "param_groups", ()) for each in group["params"]),
    ]
    parameters = list({id(each): each for each in every}.values())
    gradients = [each.grad for each in parameters]
    attributes = [
        (module, {name: value for name, value in vars(module).items() if name not in _OWN})
        for module in model.modules()
    ]
    generators = random_state()
    try:
        for each in parameters:
            each.grad = None
        with kept_buffers(model), torch.enable_grad(), contextlib.ExitStack() as stack:
            # A compiled model runs as it was written: it has no modules to look at.
            if hasattr(torch.compiler, "set_stance"):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for module, before in attributes:
            _put_back(module, before)
        set_random_state(generators)


@contextlib.contextmanager
def kept_buffers(model: torch.nn.Module) -> Iterator[None]:
    """A ``with`` block after which the buffers of a model are what they were."""
    buffers = [(each, each.detach().clone()) for each in model.buffers()]
    held = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, own in held:
            module._buffers.clear()
            module._buffers.update(own)
        for buffer, value in buffers:
            put_value(buffer, value)


def _put_back(module: torch.nn.Module, before: Mapping[str, Any]) -> None:
    now = vars(module)
    for name in [name for name in now if name not in before and name not in _OWN]:
        del now[name]
    now.update(before)


@contextlib.contextmanager
def weights_of(model: torch.nn.Module, state: Mapping[str, Any], *, with_weights: bool = True) -> Iterator[None]:
    """A ``with`` block in which the model has the weights and buffers of a backup, or its buffers alone."""
    every = model.state_dict(keep_vars=True).items()
    own = {
        name: each for name, each in every
        if isinstance(each, torch.Tensor) and (with_weights or not isinstance(each, torch.nn.Parameter))
    }  # fmt: skip
    saved = {name: each.detach().clone() for name, each in own.items()}
    try:
        for name, each in own.items():
            put_value(each, state[name])
        yield
    finally:
        for name, each in own.items():
            put_value(each, saved[name])


def fits(model: torch.nn.Module, state: Any) -> bool:
    """Whether a backup holds dense weights of this model."""
    if not isinstance(state, Mapping):
        return False
    return all(
        isinstance(state.get(name), torch.Tensor) and state[name].shape == each.shape and each.layout is torch.strided
        for name, each in model.state_dict().items()
        if isinstance(each, torch.Tensor)
    )
