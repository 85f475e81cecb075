"""Sources: training as a stream, of one event an epoch for a torch model, or of one event a step for any framework."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._validation import whole_number
from ..bridge.group_rates import GroupRates
from ..bridge.host import check_scheduler
from ..bridge.prefetch import Prefetch
from ..engine.signals import running
from ..triggers import Elapsed
from .stages import Event

if TYPE_CHECKING:
    import torch

    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome, Ticket
    from ..table.labels.predictions import Predictions

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

    def take_step(self, compute: Callable[[], Any], *, by_closure: bool) -> Any:
        """Take a step of the optimizer on the loss that a function computes; returns it, not read from the device.

        Args:
            compute: Returns the loss, 0-dim.
            by_closure: As `needs_closure`: whether the optimizer itself computes the loss, as often as it likes.
        """
        import torch

        def forward_and_backward() -> Any:
            # In a reader's autocast block, cast weights would outlive the step that changed the weights.
            torch.clear_autocast_cache()
            self.optimizer.zero_grad()
            loss = compute()
            loss.backward()
            return loss.detach()

        step: Any = self.optimizer.step
        if by_closure:
            return step(forward_and_backward)
        loss = forward_and_backward()
        step()
        return loss


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``optimizer.step`` cannot be called without a closure, as that of LBFGS."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


class Epoch(NamedTuple):
    """An epoch that was trained.

    Attributes:
        step: Epochs finished, including a last one that the budget cut short.
        loss: Its mean loss.
        samples: Samples trained on in it.
    """

    step: int
    loss: float
    samples: int


STEP_RAISED = (
    "step {} counts as done, since its loss was reported before the optimizer's step raised {}: its batch is not drawn "
    "again in this epoch. To train exactly as planned, continue from a checkpoint."
)


class DrawnEpochs:
    """Trains the epochs of a scheduler, from its current one to the end of its budget.

    Args:
        scheduler: Draws batches and takes the reports of their losses.
        task: The data, the model, its optimizer and the loss.
    """

    def __init__(self, scheduler: R8Scheduler, task: Task) -> None:
        from ..sources.random_generators import random_state, set_random_state
        from ..state.callbacks import Callbacks, Generators
        from ..torch.state import ModelState, copies_of

        self._r8, self._task, self._prefetch = scheduler, task, Prefetch.of(scheduler)
        self._sample_losses = sample_losses(task.loss_fn)
        self._unreduced = sample_losses(task.loss_fn, keeps_weights=True)
        self._needs_closure = needs_closure(task.optimizer)
        self._rates = rates = GroupRates(task.optimizer)
        # The scheduler keeps model, optimizer and random generators: in backups in RAM, and in checkpoints.
        state = ModelState(task.model, task.optimizer)

        def load(source: Any, *, from_ram: bool = False, is_resume: bool = False) -> Any:
            beside = state.load(source, from_ram=from_ram, is_resume=is_resume)
            rates.expect_any()
            return beside

        callbacks = Callbacks(state.save, load, state.read, generators=Generators(random_state, set_random_state))
        scheduler.host.adopt(callbacks, **copies_of(task.model))

    def train(self) -> Iterator[Epoch]:
        """Train an epoch for each that is asked for, to the end of the budget."""
        r8 = self._r8
        with contextlib.closing(self._prefetch.tickets(running(DrawnEpochs.train))) as tickets:
            while True:
                epoch, samples, mean = r8.current_epoch, 0, MeanLoss(self._task.loss_fn)
                self._task.model.train()
                while r8.current_epoch == epoch and (ticket := next(tickets, None)) is not None:
                    samples += len(ticket.indices)
                    loss = self._train_batch(ticket)
                    if loss is not None:
                        mean.add(loss, len(ticket.indices))
                if not samples:
                    return
                r8.host.leave_epoch()
                yield Epoch(epoch + 1, mean.value(), samples)

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
        by_closure = self._needs_closure
        try:
            self._task.take_step(lambda: self._losses(ticket)[0] if by_closure else loss, by_closure=by_closure)
        except Exception as error:
            self._r8.host.say_once("step raised", STEP_RAISED.format(ticket.step, type(error).__name__))
            raise
        return loss.detach()  # type: ignore[no-any-return]

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
    import torch

    check_data(data, loss_fn, last_label=last_label)
    check_model(model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}.")
    task = Task(data, model, optimizer, loss_fn, last_label)
    if extra is not None and not isinstance(extra, Mapping):
        raise TypeError(f"extra must be a dictionary or None, got {extra!r}.")
    more = dict(extra or {})
    if taken := sorted(key for key in more if key in RESERVED):
        raise ValueError(f"extra must not have the reserved keys {list(RESERVED)}, got {taken}.")
    if scheduler is not None:
        check_scheduler("scheduler", scheduler)
        count, table = len(data[0]), scheduler.table
        if table.num_samples != count:
            raise ValueError(f"data must have the scheduler's {table.num_samples} samples, got {count}.")
        if batch_size is not None and batch_size != table.batch_size:
            raise ValueError(f"batch_size must be the scheduler's {table.batch_size} or left out, got {batch_size!r}.")
        if not shuffle or generator is not None:
            got = f"{shuffle!r} and {generator!r}"
            raise ValueError(f"shuffle and generator must be left out where a scheduler draws, got {got}.")
        drawn = DrawnEpochs(scheduler, task)
        return _epoch_events(drawn.train(), scheduler.current_epoch, task.model, more)
    size = whole_number("batch_size", 1 if batch_size is None else batch_size, least=1)
    return _epoch_events(_train_shuffled(task, size, shuffle, generator), 0, task.model, more)


def _train_shuffled(task: Task, size: int, shuffle: bool, generator: torch.Generator | None) -> Iterator[Epoch]:
    """Train one epoch after the other; `DrawnEpochs` does so with a scheduler."""
    count, by_closure, loss = len(task.data[0]), needs_closure(task.optimizer), 0.0
    for step in itertools.count(1):
        # One loss that is not finite does not mean that the weights are lost.
        weights = () if math.isfinite(loss) else task.model.parameters()
        if not all(bool(parameter.isfinite().all()) for parameter in weights):
            raise FloatingPointError(
                f"weights must be finite to go on training, got NaN or infinite ones after epoch {step - 1}, whose "
                f"loss was {loss}; lower the learning rate, or pass scheduler=R8Scheduler(...), which refuses "
                "such batches."
            )
        task.model.train()
        mean = MeanLoss(task.loss_fn)
        batches = shuffled(task.data, count, size, generator) if shuffle else in_order(task.data, size)
        for batch in moved(batches, device_of(task.model), task.data):
            compute = functools.partial(batch_loss, task.model, batch, task.loss_fn, task.last_label)
            mean.add(task.take_step(compute, by_closure=by_closure), len(batch[0]))
        loss = mean.value()
        yield Epoch(step, loss, count)


def _epoch_events(
    epochs: Iterator[Epoch], done: int, model: torch.nn.Module, extra: Mapping[str, Any]
) -> Iterator[Event]:
    """The events of a stream, of which so many epochs were done before."""
    origin = began = time.monotonic()
    last = Elapsed(done)
    for step, loss, samples in epochs:
        ended = time.monotonic()
        event = Event({"step": step, "train_loss": loss, "train_time_sec": ended - began, "model": model, **extra})
        event.elapsed = last = last.then(step, last.samples + samples, ended - origin)
        yield event
        began = time.monotonic()


NOTHING_HANDED_OVER = (
    "step_stream() does not know what train_step trains: it can restore the model only if R8Scheduler has a "
    "state_callback and a load_callback, or step_stream() a state=, such as (model, optimizer)."
)

NO_STATE: Any = object()
"""Stands for no ``state``, as None may be one."""


def step_stream(
    r8: R8Scheduler, train_step: Callable[..., Any], *, state: Any = NO_STATE, part_size: int | None = None
) -> Iterator[Event]:
    """Draw, train, report: a batch for every event that is asked for, to the end of the scheduler's budget.

    An event has "step" (steps finished, from 1), "epoch" (0-based), "loss" (mean of the batch), "lr", "batch_size",
    "samples" (trained on in this stream) and "refused". Steps of a search for a learning rate make no event.

    Args:
        r8: The scheduler.
        train_step: ``(indices, lr)``, trains on these samples and returns the loss as `R8Scheduler.report` takes it;
            ``(indices, lr, weights)`` under a policy that weights. With ``state`` that comes first, and a pair of the
            new state and the loss is returned. What `predictions_of` returned may follow the losses of samples, so
            that `SampleTable.suspects` judges labels.
        state: What training changes, for backups, checkpoints and restores: a pytree, which a refused loss replaces
            with an older one in the next call; or objects with ``load_state_dict``, such as ``(model, optimizer)``,
            which are restored in place. Events then have it as "state". Without it, the scheduler needs a
            ``state_callback`` and a ``load_callback`` to restore anything.
        part_size: As in `R8Scheduler.report`, for losses of parts (gradient accumulation).

    Raises:
        TypeError: ``train_step`` is not callable, ``r8`` is not a scheduler, or there is no model in ``state``; later,
            ``train_step`` does not return a pair where there is a state.

    >>> from learnit_r8 import R8Scheduler
    >>> r8 = R8Scheduler(100, batch_size=50, num_epochs=1)
    >>> [(event["step"], event["loss"]) for event in step_stream(r8, lambda indices, lr: 1.0)]
    [(1, 1.0), (2, 1.0)]
    """
    if not callable(train_step):
        raise TypeError(f"train_step must be callable, got {train_step!r}.")
    check_scheduler("r8", r8)
    return _step_events(r8, _Stepper(r8, train_step, part_size, state))


class _Stepper:
    """Trains on a batch and reports its loss.

    Attributes:
        state: The user's state; `NO_STATE` if it stays with the user.
        has_state: Whether it does not; the scheduler then keeps it.
    """

    def __init__(self, r8: R8Scheduler, train_step: Callable[..., Any], part_size: int | None, state: Any) -> None:
        from ..bridge.driven_state import DrivenState

        self.state = state
        self._r8, self._train_step, self._part_size = r8, train_step, part_size
        self._prefetch = Prefetch.of(r8)
        self._driven = DrivenState(self)
        self.has_state = state is not NO_STATE
        if not self.has_state:
            return
        if not self._driven.has_model:
            raise TypeError(
                f"state must hold what training changes (arrays, or a model with a state_dict), got {state!r}."
            )
        r8.host.adopt(self._driven.callbacks())

    def step(self, ticket: Ticket) -> tuple[float, Outcome]:
        """The mean loss of a batch, and what the scheduler says of it."""
        from ..table.labels.predictions import Predictions
        from ..table.losses import read_loss

        weights = self._prefetch.weights_of(ticket)
        arguments = (ticket.indices, ticket.lr, *(() if weights is None else (weights,)))
        if self.has_state:
            self._driven.keep()
        result = self._train_step(self.state, *arguments) if self.has_state else self._train_step(*arguments)
        predictions = None
        if isinstance(result, tuple) and len(result) > 1 and isinstance(result[-1], Predictions):
            result, predictions = result[0] if len(result) == 2 else result[:-1], result[-1]
        if not self.has_state:
            reading = read_loss(result, len(ticket.indices), self._part_size)
            return reading.mean, self._report(reading.means, predictions)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"train_step must return (state, loss) where step_stream() has a state, got {result!r}.")
        reading = read_loss(result[1], len(ticket.indices), self._part_size)
        report = functools.partial(self._report, predictions=predictions)
        return reading.mean, self._driven.judge(self._r8, result[0], reading.means, report)

    def _report(self, means: Any, predictions: Predictions | None) -> Outcome:
        outcome = self._prefetch.report(means, part_size=self._part_size, predictions=predictions)
        if not (outcome or self.has_state or outcome.rolled_back_to is not None):
            self._r8.host.say_once("state of step_stream", NOTHING_HANDED_OVER)
        return outcome


def _step_events(r8: R8Scheduler, stepper: _Stepper) -> Iterator[Event]:
    origin = time.monotonic()
    last = Elapsed(r8.global_step)
    with contextlib.closing(Prefetch.of(r8).tickets(running(_step_events))) as tickets:
        for ticket in tickets:
            loss, outcome = stepper.step(ticket)
            if ticket.epoch < 0:
                continue
            size = len(ticket.indices)
            last = last.then(r8.global_step, last.samples + size, time.monotonic() - origin)
            event = Event(
                step=last.steps, epoch=ticket.epoch, loss=loss, lr=ticket.lr, batch_size=size, samples=last.samples,
                refused=not outcome, **({"state": stepper.state} if stepper.has_state else {}),
            )  # fmt: skip
            event.elapsed = last
            yield event
