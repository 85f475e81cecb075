"""epoch_stream: train a torch model as a stream of one event an epoch, shuffled or by R8Scheduler."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._adapters.group_rates import GroupRates
from .._adapters.host import check_scheduler
from .._adapters.prefetch import Prefetch
from .._validation import whole_number
from ..engine.signals import running
from ..triggers import Elapsed
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
    needs_closure,
    shuffled,
)

if TYPE_CHECKING:
    import torch

    from ..sampling.ticket import Ticket
    from ..scheduler import R8Scheduler


STEP_RAISED = (
    "step {} counts as done, since its loss was reported before the optimizer's step raised {}: its batch is not drawn "
    "again in this epoch. To train exactly as planned, continue from a checkpoint."
)


class DrawnEpochs:
    """Trains the epochs of a scheduler, from its current one to the end of its budget.

    Args:
        scheduler: Draws batches and takes the reports of their losses.
        task: The data, the model, its optimizer and the loss.

    Attributes:
        step: Epochs finished, including a last one that the budget cut short.
    """

    def __init__(self, scheduler: R8Scheduler, task: Task) -> None:
        self.step = scheduler.current_epoch
        self._r8, self._task, self._prefetch = scheduler, task, Prefetch.of(scheduler)
        self._sample_losses = sample_losses(task.loss_fn)
        self._unreduced = sample_losses(task.loss_fn, keeps_weights=True)
        self._needs_closure = needs_closure(task.optimizer)
        self._rates = GroupRates(task.optimizer)
        self._adopt()

    def _adopt(self) -> None:
        """Let the scheduler keep model, optimizer and random generators: backups in RAM, and checkpoints."""
        from ..checkpoint.callbacks import Callbacks, Generators
        from ..sampling.random_generators import random_state, set_random_state
        from ..torch.state import ModelState, copies_of

        task, rates = self._task, self._rates
        state = ModelState(task.model, task.optimizer)

        def load(source: Any, *, from_ram: bool = False) -> Any:
            beside = state.load(source, from_ram=from_ram)
            rates.expect_any()
            return beside

        callbacks = Callbacks(state.save, load, state.read, generators=Generators(random_state, set_random_state))
        self._r8.host.adopt(callbacks, **copies_of(task.model))

    def train(self) -> tuple[float, int] | None:
        """Train to the end of the epoch; returns its mean loss and its samples, or None if the budget is spent."""
        r8, mean = self._r8, MeanLoss(self._task.loss_fn)
        epoch, samples = r8.current_epoch, 0
        r8.requests.stay_within(running(DrawnEpochs.train))
        while (ticket := self._prefetch.draw_now()) is not None:
            samples += len(ticket.indices)
            try:
                loss = self._train_batch(ticket)
            except BaseException:
                self._prefetch.hand_back()
                raise
            if loss is not None:
                mean.add(loss, len(ticket.indices))
            if r8.current_epoch != epoch:
                break
        if not samples:
            return None
        self.step = epoch + 1
        r8.host.leave_epoch()
        return mean.value(), samples

    def end(self) -> None:
        """Give the signals back."""
        self._r8.requests.leave()

    def _train_batch(self, ticket: Ticket) -> torch.Tensor | None:
        """The mean loss, or None if the scheduler refused the batch or put the model back."""
        self._rates.set(ticket.lr)
        loss, report, labels = self._losses(ticket)
        if labels is None:
            outcome = self._prefetch.report(report.detach())
        else:
            from ..table.labels.predictions import NUM_ROWS, Predictions
            from ..torch.predictions import packed

            values, num_classes = packed(report.detach(), *labels)
            on_host, predictions = Predictions.unpack(values.cpu().reshape(1 + NUM_ROWS, -1), num_classes)
            outcome = self._prefetch.report(on_host, predictions=predictions)
        if not outcome:
            return None
        try:
            self._step(ticket, loss)
        except Exception as error:
            self._r8.host.say_once("step raised", STEP_RAISED.format(ticket.step, type(error).__name__))
            raise
        return loss.detach()  # type: ignore[no-any-return]

    def _step(self, ticket: Ticket, loss: Any) -> None:
        step: Any = self._task.optimizer.step
        if self._needs_closure:
            step(lambda: self._backward(self._losses(ticket)[0]))
        else:
            self._backward(loss)
            step()

    def _backward(self, loss: Any) -> Any:
        self._task.optimizer.zero_grad()
        loss.backward()
        return loss

    def _losses(self, ticket: Ticket) -> tuple[Any, Any, tuple[Any, Any] | None]:
        """The loss to train on, 0-dim; the losses to report, float[B] where the loss function allows it; and then the
        logits and labels of a classification, or None."""
        import torch

        torch.clear_autocast_cache()
        data, model, _, loss_fn, last_label = self._task
        rows = torch.from_numpy(ticket.indices)
        drawn = [tensor.index_select(0, rows.to(tensor.device)) for tensor in data]
        [batch] = moved([drawn], device_of(model), drawn)
        arguments = (model(*batch[:-1]), batch[-1]) if last_label else (model(*batch),)
        labels = logits_and_labels(loss_fn, *arguments) if last_label else None
        loss = loss_fn(*arguments)
        trained = loss.mean() if ticket.weights is None else self._weighted(loss, arguments, ticket.weights)
        if loss.ndim:
            return trained, per_row(loss, len(rows)), labels
        each = None
        if self._sample_losses is not None:
            with torch.no_grad():
                each = self._sample_losses(*arguments)
        return (trained, per_row(each, len(rows)), labels) if each is not None and each.ndim else (trained, loss, None)

    def _weighted(self, loss: Any, arguments: tuple[Any, ...], weights: Any) -> Any:
        """The loss function's own reduction, 0-dim, of losses that are multiplied with the weights of their samples."""
        import torch

        own = loss if loss.ndim or self._unreduced is None else self._unreduced(*arguments)
        per_row(own, len(weights))
        shares = torch.from_numpy(weights).to(own).reshape(-1, *[1] * (own.ndim - 1))
        # What a mean divides by: class weights, and labels that do not count, are in it.
        divisor = (own.sum() / loss.mean()).detach()
        return (own * shares).sum() / torch.where(divisor.isfinite(), divisor, own.numel())


def sample_losses(loss_fn: Any, *, keeps_weights: bool = False) -> Callable[..., Any] | None:
    """A loss function that gives the loss of each row, by default without class weights; None if none can be made."""
    import torch

    if isinstance(loss_fn, torch.nn.Module) and hasattr(loss_fn, "reduction"):
        unreduced: Any = copy.deepcopy(loss_fn)
        unreduced.reduction = "none"
        for name in () if keeps_weights else ("weight", "pos_weight"):
            if getattr(unreduced, name, None) is not None:
                setattr(unreduced, name, None)
        return unreduced  # type: ignore[no-any-return]
    try:
        takes_reduction = "reduction" in inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):
        return None
    return (lambda *arguments: loss_fn(*arguments, reduction="none")) if takes_reduction else None


def logits_and_labels(loss_fn: Any, scores: Any, labels: Any) -> tuple[Any, Any] | None:
    """The scores of classes and the label of each sample, -1 where it has none; None unless each has one at most.

    Args:
        loss_fn: The loss function; those of torch for classes are known.
        scores: What the model returned.
        labels: float or int[B, ...].
    """
    import torch
    from torch.nn import functional

    from ..table.labels.predictions import IGNORED, MOST_CLASSES, UNLABELLED

    if not (isinstance(scores, torch.Tensor) and isinstance(labels, torch.Tensor)):
        return None
    kind = type(loss_fn) if isinstance(loss_fn, torch.nn.Module) else loss_fn
    if kind in (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss, functional.cross_entropy, functional.nll_loss):
        is_class = scores.ndim == 2 and labels.ndim == 1 and not labels.is_floating_point()
        if not (is_class and 2 <= scores.shape[1] <= MOST_CLASSES):
            return None
        return scores, labels.masked_fill(labels == getattr(loss_fn, "ignore_index", IGNORED), UNLABELLED)
    if kind in (torch.nn.BCEWithLogitsLoss, functional.binary_cross_entropy_with_logits):
        if scores.shape != labels.shape or scores.numel() != len(scores):
            return None
        flat = labels.reshape(-1)
        # A label in between is of both classes.
        return scores, torch.where((flat == 0) | (flat == 1), flat, UNLABELLED).long()
    return None


def per_row(losses: Any, count: int) -> Any:
    """float[B] from unreduced losses [B, ...]."""
    if losses.ndim == 0 or len(losses) != count:
        raise ValueError(
            f"loss_fn must give one loss for each of the {count} samples, got shape {tuple(losses.shape)}."
        )
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def check_scheduled(scheduler: Any, task: Task, *, batch_size: int | None, shuffle: bool, generator: Any) -> None:
    """Raise TypeError or ValueError unless the scheduler and the other arguments of an epoch stream agree."""
    check_scheduler("scheduler", scheduler)
    count, table = len(task.data[0]), scheduler.table
    if table.num_samples != count:
        raise ValueError(f"data must have the scheduler's {table.num_samples} samples, got {count}.")
    if batch_size is not None and batch_size != table.batch_size:
        raise ValueError(f"batch_size must be the scheduler's {table.batch_size} or left out, got {batch_size!r}.")
    if not shuffle or generator is not None:
        raise ValueError(
            f"shuffle and generator must be left out where a scheduler draws, got {shuffle!r} and {generator!r}."
        )


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
