"""A step in a loop that a trainer owns: what it counts beside the weights, and whether a NaN explains its error."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

from .flight.watch import float_tensors
from .prepared import SampleError, plain_model

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
        # Only what was changed is written: a gradient that is computed later may need it, as class weights.
        return lambda: value if torch.equal(value, held) else value.copy_(held)
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


def gradients_of(
    parameters: Iterable[torch.nn.Parameter], old: Collection[int] = ()
) -> list[tuple[torch.nn.Parameter, torch.Tensor | None]]:
    """Parameters with copies of their gradients, from before those of a batch are added.

    Args:
        parameters: The parameters.
        old: `id` of those that a step was taken with: nothing is added to such a gradient, and zeros stand for it.
    """
    found: list[tuple[torch.nn.Parameter, torch.Tensor | None]] = []
    for each in parameters:
        gradient = each.grad
        if gradient is not None:
            gradient = torch.zeros_like(gradient) if id(each) in old else gradient.clone()
        found.append((each, gradient))
    return found


NEVER_OF_VALUES = (MemoryError, LookupError, SampleError, torch.cuda.OutOfMemoryError)
"""Errors that no value explains."""


class LastForward:
    """A ``with`` block around the loss of a batch, which an error ends that a value of the model explains.

    Looked at are the inputs and outputs of the model within the block, and the outputs of its children: a model that
    computes its loss itself may raise before it returns, and a module of Lightning may call its children alone.
    Children may return infinities on purpose, as masks, so only NaN counts in theirs.

    Args:
        model: The model, as the loop calls it.
        may_end: ``()``: whether an error may end there; other processes would wait for the gradients of this one.

    Attributes:
        has_raised: Whether it was left with such an error.
        outputs: What the model returned first, once the block is left: a trainer computes its loss from it and may
            keep it to itself. None if it returned nothing.
    """

    def __init__(self, model: torch.nn.Module, may_end: Callable[[], bool]) -> None:
        self._model, self._may_end = model, may_end
        self._given: list[Any] = []
        self._returned: list[Any] = []
        self._inner: list[Any] = []
        self.has_raised, self.outputs = False, None

    def __enter__(self) -> LastForward:
        self._hooks = [
            self._model.register_forward_pre_hook(lambda _, *given: self._given.append(given), with_kwargs=True),
            self._model.register_forward_hook(lambda _, __, outputs: self._returned.append(outputs)),
            *(
                each.register_forward_hook(lambda _, __, outputs: self._inner.append(outputs))
                for each in plain_model(self._model).children()
            ),
        ]
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        for hook in self._hooks:
            hook.remove()
        if isinstance(error, Exception) and self._may_end():
            self.has_raised = self._explains(error)
        self.outputs = next(iter(self._returned), None)
        self._given, self._returned, self._inner = [], [], []
        return self.has_raised

    def _explains(self, error: Exception) -> bool:
        """Whether what was seen is not finite, so that an exception may be due to that."""
        if isinstance(error, NEVER_OF_VALUES):
            return False
        try:
            if any(bool(torch.isnan(each).any()) for each in float_tensors(self._inner)):
                return True
            return not all(bool(torch.isfinite(each).all()) for each in float_tensors([self._given, self._returned]))
        except Exception:
            # A device that has failed answers no question.
            return False


LAST_LOSSES = 3
"""Losses of which the median stands for one that does not count: that of a state to be undone is the last one alone."""


def no_loss(model: torch.nn.Module, *last: torch.Tensor) -> torch.Tensor:
    """A loss without a gradient, for a batch that is not to be learned from.

    It has the median of the ``last`` ones that were, as it goes into a mean that is logged. NaN, which it has if there
    was none, a Trainer replaces by the mean of an update, which is 0 at the first one and too much for a part of one.
    """
    if last:
        return torch.stack(last).median().requires_grad_()
    return torch.full((), math.nan, device=next(model.parameters()).device, requires_grad=True)
