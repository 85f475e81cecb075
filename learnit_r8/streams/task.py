"""The task of an epoch stream: the data, the model, its optimizer and the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .validation import LossFunction, batch_loss

if TYPE_CHECKING:
    import torch


class Task(NamedTuple):
    """The arguments of an epoch stream that say what to train.

    Attributes:
        data: [N, ...] tensors.
        model: The module.
        optimizer: Of its parameters.
        loss_fn: The loss.
        last_label: Whether the last tensor of the data is the label.
    """

    data: Sequence[torch.Tensor]
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: LossFunction
    last_label: bool

    def trainer(self) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
        """A function that trains one batch and returns its loss, detached and not read from the device."""
        import torch

        _, model, optimizer, loss_fn, last_label = self
        forget_casts = torch.clear_autocast_cache

        def forward_and_backward(batch: Sequence[torch.Tensor]) -> torch.Tensor:
            # In a reader's autocast block, cast weights would outlive the step that changed the weights.
            forget_casts()
            optimizer.zero_grad()
            loss = batch_loss(model, batch, loss_fn, last_label)
            loss.backward()
            return loss.detach()  # type: ignore[no-any-return]

        def train_batch(batch: Sequence[torch.Tensor]) -> torch.Tensor:
            loss = forward_and_backward(batch)
            optimizer.step()
            return loss

        def train_by_closure(batch: Sequence[torch.Tensor]) -> torch.Tensor:
            step: Any = optimizer.step
            return step(lambda: forward_and_backward(batch))  # type: ignore[no-any-return]

        return train_by_closure if needs_closure(optimizer) else train_batch


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer.step`` cannot be called without a closure, as that of LBFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def check_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """``optimizer``; TypeError unless it is one of torch's."""
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}.")
    return optimizer
