"""The attached model: what the adapters for drawn batches and for the user's own have in common."""

from __future__ import annotations

import contextlib
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from .._adapters.group_rates import is_close, is_set_by_r8, rates_of
from .._adapters.prefetch import Prefetch
from .._validation import no_attribute
from ..recovery.policy import DEAD_EVERY
from ..sampling.ticket import Outcome, Ticket
from .distributed.shards import is_sharded
from .loss_pipeline import LossPipeline, Training
from .own_loop.last_forward import LastForward
from .prepared import plain_optimizer
from .serialization import as_arrays, as_tensors

if TYPE_CHECKING:
    Tell = Callable[[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None], Outcome]

Self = TypeVar("Self", bound="AttachedModel")

OTHER_NAMES = {
    "suspects": "It is adapter.scheduler.table.suspects().",
    "save": "It is adapter.scheduler.save_checkpoint().",
    "backward": "adapter.step(loss) does backward() and the optimizer's step; or call loss.backward() after report().",
}

MOST_LOOKS = 3
"""Refused losses whose graphs are looked at."""


def parameters_of(losses: Iterable[torch.Tensor]) -> list[torch.nn.Parameter]:
    """The parameters that losses were computed from, as far as their graphs tell."""
    nodes = [loss.grad_fn for loss in losses if isinstance(loss, torch.Tensor) and loss.grad_fn is not None]
    seen, found = set(nodes), []
    while nodes:
        node = nodes.pop()
        if isinstance(parameter := getattr(node, "variable", None), torch.nn.Parameter):
            found.append(parameter)
        more = [other for other, _ in node.next_functions if other is not None and other not in seen]
        seen.update(more)
        nodes += dict.fromkeys(more)
    return found


class AttachedModel(ABC):
    """A model's training under a scheduler, whoever makes the batches.

    Args:
        training: The model, and all that belongs to its training.
        batches: Holds the batches of the scheduler.

    Attributes:
        scheduler: The R8Scheduler.
        optimizer: The optimizer that `attach` got.
        state: The state of the training.
        rates: Sets the learning rates; None if other code does.
        num_ranks: Processes that train the model together, each on its part of every batch.
    """

    _other_names: ClassVar[Mapping[str, str]] = {}

    def __init__(self, training: Training, batches: Prefetch) -> None:
        self.scheduler, self.optimizer, self.state = training.scheduler, training.optimizers[0], training.state
        self.rates, self.num_ranks = training.rates, training.sharing.size
        self._model, self._stepper, self._sharing = training.model, training.stepper, training.sharing
        self._hand, self._ahead, self._second_run = training.hand, training.ahead, training.second_run
        self._losses = LossPipeline(batches, training)
        # On other devices each look would wait for them; shards and other kinds of tensors cannot be read like this.
        is_plain = all(each.is_cpu and isinstance(each, torch.nn.Parameter) for each in training.model.parameters())
        self._looks_at_gradients = self.num_ranks == 1 and is_plain and not is_sharded(training.model)
        batches.join(self._losses)
        self._num_looks = 0

    def check(self) -> bool:
        """Look at the weights now, and put back what is not finite; see `R8Scheduler.check`."""
        self.flush()
        return self.scheduler.check()

    def _look_for_others(self, *losses: torch.Tensor) -> None:
        """Say once if refused losses come from parameters that `attach` was not given, as of a second network."""
        # Those of shards, and of what wraps them, are other tensors at each step.
        if self.num_ranks > 1 or self._num_looks == MOST_LOOKS:
            return
        self._num_looks += 1
        own = set(map(id, self.state.parameters()))
        others = [each for each in parameters_of(losses) if id(each) not in own]
        if others:
            num_bad = sum(not bool(torch.isfinite(each).all()) for each in others)
            self.scheduler.host.say_once(
                "others",
                f"the loss of step {self.scheduler.global_step}, which was refused, comes from {len(others)} "
                f"parameters that attach() was not given ({num_bad} of them not finite, the first of shape "
                f"{tuple(others[0].shape)}): they are neither kept nor healed. If they are trained, name their network "
                'and its optimizer: attach(..., also={"second": network, "second optimizer": optimizer}).',
            )

    @property
    def outcome(self) -> Outcome:
        """The outcome of the last report; "pending" as long as losses are on their way from the device."""
        return self._losses.outcome

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or the run was stopped."""
        self.flush()
        return self.scheduler.is_over

    @property
    def lr_scheduler(self) -> R8LRScheduler:
        """A learning-rate scheduler of torch's kind, for code that steps, shows or saves one."""
        return R8LRScheduler(self)

    @property
    def num_waits(self) -> int:
        """How often a step waited for the device to read a loss, not counting ends of epochs, backups, checkpoints."""
        readback = self._losses.readback
        return 0 if readback is None else readback.num_waits

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            meant, scheduler = {**OTHER_NAMES, **self._other_names}, self.__dict__.get("scheduler")
            if not name.startswith("_") and hasattr(scheduler, name):
                meant = {name: f"It is adapter.scheduler.{name}.", **meant}
            raise no_attribute(self, name, meant)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.scheduler!r})"

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """A ``with`` block around the training on a batch, in which a loss function may raise because of a NaN.

        Binary cross entropy does, for instance. An exception before the loss is noted or reported counts as a refused
        loss if the inputs or outputs of the model within the block are not finite; the block ends there, and `outcome`
        is false. Every other one is raised unchanged: out of memory, indices, samples that cannot be read, all that is
        raised later, and any on several processes, where the others would wait.

        Raises:
            TrainingDiverged: losses stay refused after everything was tried.

        >>> from torch.nn.functional import binary_cross_entropy
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Sigmoid())
        >>> data = torch.utils.data.TensorDataset(torch.tensor([[1.0], [float("nan")]]), torch.ones(2, 1))
        >>> from learnit_r8.torch import attach
        >>> adapter = attach(model, torch.optim.SGD(model.parameters(), 0.1), data, batch_size=1, num_epochs=1)
        >>> for x, y in adapter.loader():
        ...     with adapter.batch():
        ...         outcome = adapter.step(adapter.loss(binary_cross_entropy(model(x), y, reduction="none")))
        >>> adapter.scheduler.sentry.num_refused
        1
        """
        before = self._num_noted()
        with LastForward(self._model) as forward:
            try:
                yield
            except Exception as error:
                if self.num_ranks > 1 or self._num_noted() != before or not forward.explains(error):
                    raise
                self.refuse()

    @abstractmethod
    def _num_noted(self) -> int:
        """Losses noted or reported so far."""

    @abstractmethod
    def refuse(self) -> Outcome:
        """Report that the loss of the batch in hand could not be computed, as values are not finite."""

    def _take_step(self, loss: torch.Tensor, ticket: Ticket | None, tell: Tell, *, is_last: bool = False) -> Outcome:
        """Do ``backward()``, clip, and let the optimizer take its step unless the loss is refused.

        Args:
            loss: 0-dim, with its gradient.
            ticket: Its batch; None for one that is not reported.
            tell: Reports the loss, with the norm of the gradient, whether the step was left out, and the loss to report
                in its place; gives the outcome.
            is_last: Whether it is the last one of an epoch.
        """
        stepper = self._stepper
        # Weights that are tested must not change before the loss is known.
        is_test = ticket is None or self._losses.is_probe(ticket)
        is_probe = stepper.is_scaled and is_test and ticket is not None
        with self._sharing.watching():
            is_due = stepper.backward(loss, is_last=is_last)
            norm = stepper.clip() if is_due and not is_probe else None
        skipped = stepper.apply() if is_due and stepper.is_scaled and not is_probe else None
        again = None
        if self._second_run is not None and not is_test:
            again, norm = self._second_run.of(loss, norm)
        controller = self.scheduler.controller
        is_look = self._looks_at_gradients and not controller.lineage.updates // stepper.accumulate % DEAD_EVERY
        if is_due and is_look and not is_test and controller.watches_gradients:
            controller.note_gradients(stepper.gradient_sizes())
        outcome = tell(norm, skipped, again)
        if outcome and is_due and (is_probe or not stepper.is_scaled):
            if is_probe:
                stepper.clip()
            stepper.apply()
        if is_due or not outcome:
            stepper.clear()
        if not outcome:
            self._look_for_others(loss)
        return outcome

    def hold(self, batch: Any) -> None:
        """Hold a batch by reference until the next one, where a trainer hands it over by itself; see ``run_batch``."""
        self._losses.hand_out(batch)

    def flush(self) -> None:
        """Wait for all losses on their way, and report them."""
        self._losses.settle()

    def load_scheduler(self, state: Mapping[str, Any]) -> None:
        """Take over the state of the scheduler alone; losses on their way are dropped.

        Raises:
            ValueError: it is of another run. Then nothing was changed.
        """
        self._losses.load_scheduler(state)

    def close(self) -> None:
        """Finish: report, save what is due, tell listeners. Safe to call twice."""
        self.scheduler.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.scheduler.__exit__(*error)


HELD = "a {} holds the optimizer, whose rate R8 sets"


def peak_under_schedules(optimizer: Any) -> tuple[float, str] | None:
    """The highest rate of an optimizer as its schedules of torch show it, as the present one may be what they wrote.

    Without a schedule the present rate is the user's: a loaded optimizer carries the ``initial_lr`` of another run.

    Returns:
        The rate, and a sentence on where it comes from; None if no schedule holds the optimizer, or R8 has set it.

    Raises:
        ValueError: they do not show it.
    """
    if is_set_by_r8(optimizer):
        return None
    schedules = _live_schedules(optimizer)
    if schedules:
        # One that is no longer used may wait in a cycle for the collector.
        del schedules
        gc.collect()
        schedules = _live_schedules(optimizer)
    if not schedules:
        return None
    # Of one that is made of others, itself.
    outer = max(schedules, key=lambda each: len(getattr(each, "_schedulers", ())))
    held, now, groups = HELD.format(type(outer).__name__), rates_of(optimizer), optimizer.param_groups
    # A plateau writes nothing before its first step.
    acting = [each for each in schedules if not (isinstance(each, ReduceLROnPlateau) and each.last_epoch == 0)]
    # A loaded optimizer may carry the max_lr of another run, too.
    has_max = any(isinstance(each, OneCycleLR) or not type(each).__module__.startswith("torch.") for each in acting)
    is_hidden = any(isinstance(each, (CyclicLR, ReduceLROnPlateau)) for each in acting)
    keys = ["lr"] if not acting else [] if is_hidden else ["max_lr", "initial_lr"][not has_max :]
    shown = {key: [float(group[key]) for group in groups] for key in keys if all(key in group for group in groups)}
    if not (max(now) > 0 and any(all(map(is_close, now, rates)) for rates in shown.values())):
        others = "".join(f", {key} {max(rates):.6g}" for key, rates in shown.items())
        raise ValueError(
            f"initial_lr must be given, the peak of R8's schedule: {held}, got its lr {max(now):.6g}{others}. Or take "
            "that schedule out; or keep it, with scheduler_mode='keep'."
        )
    key, rates = next(iter(shown.items()))
    differs = "" if all(map(is_close, now, rates)) else f", not {max(now):.6g}, its present rate"
    text = (
        f"{held}: the peak is {max(rates):.6g}, its {key}{differs}. Take that schedule out; initial_lr= gives another."
    )
    return max(rates), text


def _live_schedules(optimizer: Any) -> list[Any]:
    """The schedules of torch's kind that somebody holds; an optimizer does not know which ones it has."""
    plain = plain_optimizer(optimizer)
    return [
        each
        for each in gc.get_objects()
        # Not by isinstance(), for which a proxy may load or import what it stands for.
        if issubclass(type(each), (LRScheduler, ReduceLROnPlateau))
        and type(each) is not R8LRScheduler
        and plain_optimizer(getattr(each, "optimizer", None)) is plain
    ]


class R8LRScheduler(LRScheduler):
    """Shows the rates that R8Scheduler sets, and saves its state; stepping it changes nothing.

    Args:
        adapter: Sets the rates.
    """

    def __init__(self, adapter: AttachedModel) -> None:
        # The constructor of the base class would take a step, and count those of the optimizer.
        self._adapter = adapter
        self.optimizer = adapter.optimizer
        # Accelerate counts in it the steps of an accumulated gradient.
        self._step_count = 0
        self.base_lrs = [group.get("initial_lr", group["lr"]) for group in adapter.optimizer.param_groups]

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """Steps reported so far, which is what torch counts here."""
        return self._adapter.scheduler.global_step

    def step(self, *_: Any) -> None:
        """Do nothing: the rate moves on with each batch reported."""

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each parameter group."""
        return rates_of(self.optimizer)

    get_lr = get_last_lr  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """The whole scheduler's state as tensors and plain values; ``torch.load(weights_only=True)`` reads it.

        The losses on their way are waited for.
        """
        self._adapter.flush()
        state: dict[str, Any] = as_tensors(self._adapter.scheduler.state_dict())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: it is of another run.
        """
        self._adapter.load_scheduler(as_arrays(state_dict))
