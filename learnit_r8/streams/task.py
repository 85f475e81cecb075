"""The task of an epoch stream: its data in batches, the model, its optimizer and the loss; and validation."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._validation import whole_number

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 8_000_000
"""Shuffled rows are gathered for several batches at once, up to this size: one gather costs as much as ten views."""


def iter_batches(
    *tensors: torch.Tensor,
    batch_size: int = 1,
    shuffle: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Go once through rows that belong together.

    Args:
        *tensors: [N, ...] each; row i of one belongs to row i of the others.
        batch_size: B, rows in a batch, >= 1; the last batch may have fewer.
        shuffle: Whether in a random order.
        generator: Where the order is drawn from; by default torch's global one.

    Returns:
        An iterator over tuples, [B, ...] of each tensor.

    Raises:
        ValueError: no tensors, no rows, unequal lengths, or a batch size below 1.
        TypeError: one is not a tensor.
    """
    count = check_rows(tensors)
    size = whole_number("batch_size", batch_size, least=1)
    return shuffled(tensors, count, size, generator) if shuffle else in_order(tensors, size)


def check_rows(tensors: Sequence[Any], name: str = "tensors") -> int:
    """N, the rows that all of these tensors have; ValueError or TypeError, naming the argument, if they do not."""
    import torch

    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be torch tensors, got {type(tensor).__name__}.")
    lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
    if not lengths or min(lengths) < 1 or min(lengths) != max(lengths):
        raise ValueError(f"{name} must have the same number of rows, at least 1, got {lengths}.")
    return lengths[0]


def in_order(tensors: Sequence[torch.Tensor], size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of consecutive rows, as views."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)  # type: ignore[no-untyped-call]


def shuffled(
    tensors: Sequence[torch.Tensor], count: int, size: int, generator: torch.Generator | None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches in a random order: every row once."""
    import torch

    source = generator.device if generator is not None else tensors[0].device
    order = torch.randperm(count, generator=generator, device=source)
    row_bytes = sum(tensor.element_size() * tensor[0].numel() for tensor in tensors)
    chunk = max(1, CHUNK_BYTES // max(1, row_bytes * size)) * size
    for rows in order.split(chunk):  # type: ignore[no-untyped-call]
        yield from in_order([tensor.index_select(0, rows.to(tensor.device)) for tensor in tensors], size)


LossFunction = Callable[..., Any]
"""``(prediction, label)``, or ``(prediction)`` without labels; returns a 0-dim tensor, or one loss for each row."""

READ_EVERY = 1024
"""Losses kept on the device before they are read: reading each would make it wait, keeping all would fill it."""


def validation_loss(
    data: Sequence[torch.Tensor],
    loss_fn: LossFunction,
    *,
    key: str = "val_loss",
    last_label: bool = True,
    batch_size: int = 4096,
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """Make an augmenter that evaluates ``event["model"]``: in eval mode, without gradients, batch by batch.

    Afterwards every module is back in its previous mode, even after an error.

    Args:
        data: [N, ...] tensors; inputs, and the label last.
        loss_fn: ``loss_fn(model(*inputs), label)``. Batches are averaged by their rows, or added up over all rows
            and divided by N where ``loss_fn.reduction`` is "sum".
        key: Name of the loss in the event.
        last_label: Whether the last tensor is the label; if not, ``loss_fn(model(*data))``.
        batch_size: Rows in a batch, >= 1.

    Raises:
        ValueError: no rows, unequal lengths, no label, or a batch size below 1.
        TypeError: a tensor or the loss function is not one; later, the event has no torch module.
    """
    check_data(data, loss_fn, last_label=last_label)
    size = whole_number("batch_size", batch_size, least=1)

    def evaluate(event: Mapping[str, Any]) -> dict[str, float]:
        model = check_model(event.get("model"))
        mean = MeanLoss(loss_fn)
        with _evaluating(model):
            for batch in moved(in_order(data, size), device_of(model), data):
                mean.add(batch_loss(model, batch, loss_fn, last_label), len(batch[0]))
        return {key: mean.value()}

    return evaluate


def check_data(data: Any, loss_fn: Any, *, last_label: bool) -> None:
    """Raise ValueError or TypeError unless a loss can be computed of the data."""
    if not isinstance(data, (tuple, list)):
        raise TypeError(f"data must be a tuple of tensors, got {type(data).__name__}.")
    if last_label and len(data) < 2:
        raise ValueError(f"data must be inputs and a label last, got {len(data)} tensors; or pass last_label=False.")
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {loss_fn!r}.")
    check_rows(data, "data")


def check_model(model: Any) -> torch.nn.Module:
    """``model``; TypeError unless it is a torch module."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}.")
    return model


def batch_loss(model: torch.nn.Module, batch: Sequence[torch.Tensor], loss_fn: LossFunction, last_label: bool) -> Any:
    """The mean loss of a batch, as a 0-dim tensor."""
    if last_label:
        *inputs, label = batch
        loss = loss_fn(model(*inputs), label)
    else:
        loss = loss_fn(model(*batch))
    return loss.mean() if loss.ndim else loss


class MeanLoss:
    """The mean of batch losses over their rows, read from the device once in a while.

    Args:
        loss_fn: Whose losses they are; those of one with the reduction "sum" are added up and divided by the rows.
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        self._is_sum = getattr(loss_fn, "reduction", None) == "sum"
        self._unread: list[torch.Tensor] = []
        self._sizes: list[int] = []
        self._total = 0.0
        self._rows = 0

    def add(self, loss: torch.Tensor, size: int) -> None:
        """Take the loss of one more batch, a 0-dim tensor, of this many rows."""
        self._unread.append(loss)
        self._sizes.append(size)
        if len(self._unread) == READ_EVERY:
            self._read()

    def _read(self) -> None:
        import torch

        values, sizes = torch.stack(self._unread).tolist(), self._sizes
        weights = [1] * len(sizes) if self._is_sum else sizes
        self._total += math.fsum(value * weight for value, weight in zip(values, weights, strict=True))
        self._rows += sum(sizes)
        self._unread, self._sizes = [], []

    def value(self) -> float:
        """The mean so far; NaN before the first batch."""
        if self._unread:
            self._read()
        return self._total / self._rows if self._rows else math.nan


def device_of(model: torch.nn.Module) -> torch.device | None:
    """Where a model's parameters are; None if it has none."""
    first = next(model.parameters(), None)
    return None if first is None else first.device


def moved(
    batches: Iterable[Sequence[torch.Tensor]], device: torch.device | None, data: Sequence[torch.Tensor]
) -> Iterable[Sequence[torch.Tensor]]:
    """Batches of ``data``, each where the model is when its turn comes."""
    if device is None or all(tensor.device == device for tensor in data):
        return batches
    return ([tensor.to(device, non_blocking=True) for tensor in batch] for batch in batches)


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    import torch

    # In a reader's autocast block, weights that were cast before the last training step would be evaluated.
    torch.clear_autocast_cache()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


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
