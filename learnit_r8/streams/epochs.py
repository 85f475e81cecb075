"""epoch_stream: train a torch model as a stream of one event an epoch, shuffled or by R8Scheduler."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._validation import whole_number
from ..triggers import Elapsed
from .drawn import DrawnEpochs, check_scheduled
from .event import Event
from .task import (
    LossFunction,
    MeanLoss,
    Task,
    check_data,
    check_model,
    check_optimizer,
    device_of,
    in_order,
    moved,
    shuffled,
)

if TYPE_CHECKING:
    import torch

    from ..scheduler import R8Scheduler

RESERVED = ("step", "train_loss", "train_time_sec", "model")
"""Keys of every event of an epoch."""


def epoch_stream(
    data: Sequence[torch.Tensor],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFunction,
    *,
    batch_size: int | None = None,
    shuffle: bool = True,
    extra: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
    last_label: bool = True,
    scheduler: R8Scheduler | None = None,
) -> Iterator[Event]:
    """Train the live model, an epoch for every event that is asked for.

    An event has "step" (finished epochs, from 1), "train_loss" (mean over the samples), "train_time_sec" and "model".
    Without a scheduler the stream has no end: stop it with `take` or `early_stop`.

    Args:
        data: [N, ...] tensors; inputs, and the label last. Batches are moved to the model's device.
        model: The module to train; it is put into training mode before each epoch.
        optimizer: Of its parameters. One whose ``step`` needs a closure gets one.
        loss_fn: ``loss_fn(model(*inputs), label)``, a 0-dim tensor, or one loss for each row, which is averaged.
        batch_size: B, >= 1; by default the scheduler's, and 1 without a scheduler.
        shuffle: Whether each epoch has its own random order.
        extra: Entries of every event.
        generator: Where the order is drawn from; by default torch's global one.
        last_label: Whether the last tensor is the label; if not, ``loss_fn(model(*data))``.
        scheduler: An R8Scheduler, which then draws the batches, sets the learning rate (groups keep their ratios),
            reads the loss of every sample (and the predictions, if ``loss_fn`` is one of torch's for classes, so that
            `SampleTable.suspects` judges labels), keeps model and optimizer (backups in RAM; checkpoints if it has a
            ``checkpoint_dir``) beside what your own callbacks keep, skips refused batches or restores an older
            state, and ends the stream with its budget.

    Raises:
        ValueError: no rows, unequal lengths, no label, an argument out of its range or not the scheduler's, or a
            reserved key in ``extra``.
        TypeError: an argument of the wrong kind.
        FloatingPointError: later, when the next event is asked for: weights are no longer finite.
    """
    check_data(data, loss_fn, last_label=last_label)
    task = Task(data, check_model(model), check_optimizer(optimizer), loss_fn, last_label)
    if extra is not None and not isinstance(extra, Mapping):
        raise TypeError(f"extra must be a dictionary or None, got {extra!r}.")
    more = dict(extra or {})
    if taken := sorted(key for key in more if key in RESERVED):
        raise ValueError(f"extra must not have the reserved keys {list(RESERVED)}, got {taken}.")
    if scheduler is not None:
        check_scheduled(scheduler, task, batch_size=batch_size, shuffle=shuffle, generator=generator)
        return _events(DrawnEpochs(scheduler, task), task.model, more)
    size = whole_number("batch_size", 1 if batch_size is None else batch_size, least=1)
    return _events(_ShuffledEpochs(task, size, shuffle, generator), task.model, more)


class _ShuffledEpochs:
    """Trains one epoch after the other; `DrawnEpochs` does so with a scheduler."""

    def __init__(self, task: Task, size: int, shuffle: bool, generator: torch.Generator | None) -> None:
        self.step, self._loss = 0, 0.0
        self._task, self._size, self._shuffle, self._generator = task, size, shuffle, generator

    def train(self) -> tuple[float, int]:
        task, size, count = self._task, self._size, len(self._task.data[0])
        # One loss that is not finite does not mean that the weights are lost.
        weights = () if math.isfinite(self._loss) else task.model.parameters()
        if not all(bool(parameter.isfinite().all()) for parameter in weights):
            raise FloatingPointError(
                f"weights must be finite to go on training, got NaN or infinite ones after epoch {self.step}, whose "
                f"loss was {self._loss}; lower the learning rate, or pass scheduler=R8Scheduler(...), which refuses "
                "such batches."
            )
        train_batch, mean = task.trainer(), MeanLoss(task.loss_fn)
        batches = shuffled(task.data, count, size, self._generator) if self._shuffle else in_order(task.data, size)
        for batch in moved(batches, device_of(task.model), task.data):
            mean.add(train_batch(batch), len(batch[0]))
        self.step += 1
        self._loss = mean.value()
        return self._loss, count

    def end(self) -> None:
        """Do nothing."""


def _events(epochs: _ShuffledEpochs | DrawnEpochs, model: torch.nn.Module, extra: Mapping[str, Any]) -> Iterator[Event]:
    origin = time.monotonic()
    last = (epochs.step, 0, 0.0)
    try:
        while True:
            began = time.monotonic()
            model.train()
            trained = epochs.train()
            if trained is None:
                return
            loss, samples = trained
            ended = time.monotonic()
            now = (epochs.step, last[1] + samples, ended - origin)
            event = Event(
                {"step": epochs.step, "train_loss": loss, "train_time_sec": ended - began, "model": model, **extra}
            )
            event.elapsed, last = Elapsed(*now, *last), now
            yield event
    finally:
        epochs.end()
