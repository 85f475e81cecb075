"""The adapter for the user's own batches: it watches them, and heals the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..._adapters.prefetch import Prefetch
from ..._validation import loop_method
from ...guard.verdict import GOOD
from ...sampling.ticket import Outcome, Ticket
from ..attached_model import AttachedModel
from ..flight.second_run import with_second
from ..loss_pipeline import Training
from ..prepared import is_skipping
from .rate_factor import RateFactor

if TYPE_CHECKING:
    from ...engine.feed.feed import Batches
    from ...engine.feed.trainer_batches import TrainerBatches
    from ...scheduler import R8Scheduler
    from ..loss_pipeline import LossPipeline

VALIDATED = (
    "the loss of step {} has no gradient, and is of another loader than that of attach(): it counts as a step of "
    "training. To validate, iterate over your loader itself, and call adapter.scheduler.log(val_loss=...)."
)

NOT_OF_BATCHES = (
    "the loss of step {} is of no batch of adapter.batches(): epochs are not counted, no sample is known, and a "
    "resumed run does not find its place in the loader. Write adapter.batches() in place of the loader; for steps "
    "without one, attach None and iterate over adapter.steps()."
)


class LossReports:
    """Takes the losses of a user's own loop.

    Args:
        scheduler: An R8Scheduler without ``num_samples``.
        pipeline: Brings the losses to it.
        optimizer: Has the user's rate.
        has_loader: Whether the user has a loader.
        sets_rates: Whether the rates are the scheduler's.
        is_alone: Whether this process trains alone.
        look: Called with the losses of a refused batch.

    Attributes:
        is_other: Whether the batches are of another loader than that of `attach`.
    """

    def __init__(
        self, scheduler: R8Scheduler, pipeline: LossPipeline, *, optimizer: Any, has_loader: bool, sets_rates: bool,
        is_alone: bool, look: Callable[..., None],
    ) -> None:  # fmt: skip
        self._r8, self._host, self._pipeline, self._optimizer = scheduler, scheduler.host, pipeline, optimizer
        self._feed: Any = scheduler.feed
        self._look = look
        self._has_loader, self._sets_rates, self.is_other = has_loader, sets_rates, False
        # What is in main memory needs no way round.
        self._is_direct = is_alone and not sets_rates

    def report(self, *losses: torch.Tensor, ids: Any = None) -> Outcome:
        """Report the loss of the batch in hand; see `LoaderAdapter.report`."""
        found = self.take(ids)
        if found is None:
            return Outcome(GOOD, self._r8.lr, None)
        values, count = values_of(losses, found)
        if self.is_other and not (torch.is_grad_enabled() or losses[0].requires_grad):
            self._host.say_once("validated", VALIDATED.format(found.step))
        if not count and len(losses) == 1:
            self._feed.note_rows(found, losses[0])
        outcome = self.tell(found, values, count, None, None)
        if outcome.verdict is not GOOD and not outcome:
            self._look(*losses)
        return outcome

    def take(self, ids: Any = None) -> Ticket | None:
        """The batch that a loss belongs to; None after the end."""
        feed = self._feed
        ticket: Ticket | None = feed.source.open
        if ticket is None:
            if self._has_loader and not (feed.has_asked or feed.source.iteration is not None or self._r8.is_over):
                self._host.say_once("no batches", NOT_OF_BATCHES.format(self._r8.global_step))
            ticket = feed.take_step()
        if ids is not None and ticket is not None:
            ticket = feed.tell_ids(ticket, ids)
        feed.source.open = None
        return ticket

    def tell(
        self, ticket: Ticket, values: torch.Tensor, count: int, norm: torch.Tensor | None,
        skipped: torch.Tensor | None, again: torch.Tensor | None = None,
    ) -> Outcome:  # fmt: skip
        """Report what `values_of` returned, with the norm of the gradient and whether the step was left out.

        ``again`` is the loss of the batch, computed once more, in place of values that are not finite.
        """
        pipeline = self._pipeline
        values = with_second(values, again)
        self._note_rate()
        if self._is_direct and norm is None and skipped is None and values.is_cpu and pipeline.recorded is None:
            outcome = pipeline.tell_now(ticket, values.numpy() if count else float(values))
            return outcome._replace(lr=self._r8.lr)
        pipeline.record(
            ticket, values if count else values.reshape(1), count=count or 1, part_size=1 if count else None
        )
        outcome = pipeline.tell(norm, skipped)
        if self._sets_rates:
            return outcome
        return outcome._replace(lr=self._r8.lr)

    def _note_rate(self) -> None:
        """Tell views and guard the rate that the user has set."""
        if self._sets_rates:
            return
        rate = self._optimizer.param_groups[0]["lr"]
        if rate is self._host.rates.own:
            return
        # A tensor on a device is not read, as that would wait for it.
        if type(rate) is float or not getattr(rate, "is_cuda", False):
            self._r8.tell_rate(float(rate))


def values_of(losses: tuple[torch.Tensor, ...], ticket: Ticket | None) -> tuple[torch.Tensor, int]:
    """Return the values to report, without gradient, and the rows that each stands for; 0 for a single mean.

    Returns:
        float32[P], the losses of the rows of a batch whose samples are known; or float32[1], the sum of the means.
    """
    batch: Any = None if ticket is None else ticket.batch.chunk
    members = None if batch is None else batch.members
    if members is not None and len(losses) == 1 and isinstance(losses[0], torch.Tensor):
        loss, (indices, counts) = losses[0], members
        shape, rows = loss.shape, len(indices if counts is None else counts)
        if rows and shape == (rows,) and loss.dtype is torch.float32:
            # What nearly every step is.
            return loss.detach(), rows
        if shape and shape[0] == rows and loss.is_floating_point() and loss.numel():
            values = loss.detach()
            values = values.reshape(rows, -1).mean(1, dtype=torch.float32) if len(shape) > 1 else values
            return values if values.dtype is torch.float32 else values.float(), rows
    return _mean_of(losses), 0


def _mean_of(losses: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """float32, the sum of the means of losses, without their gradient."""
    if len(losses) == 1 and isinstance(losses[0], torch.Tensor) and losses[0].dtype is torch.float32:
        loss = losses[0].detach()
        return loss if not loss.ndim else loss.mean()
    if not losses:
        raise TypeError("report() must get a loss, got none.")
    for loss in losses:
        if not (isinstance(loss, torch.Tensor) and loss.is_floating_point()):
            raise TypeError(f"loss must be a tensor of floats, got {loss!r}.")
    means = [loss.detach() if loss.ndim == 0 else loss.detach().mean() for loss in losses]
    return sum(means[1:], means[0]).to(torch.float32)


BATCHES = "Loop over batches: for batch in adapter.batches()."


class LoaderAdapter(AttachedModel):
    """A model's training with the user's own loader; `attach` makes it if it gets no ``batch_size``.

    To iterate over it is to iterate over `batches`, and what it has no attribute for is that of the loader, so it can
    take the loader's name. As long as nothing goes wrong, the training does not change: weights, optimizer state,
    random generators and the order of the data are bit for bit those of the script without it.

    Args:
        training: The model, and all that belongs to its training; its scheduler has no ``num_samples``.
        loader: The user's iterable of batches, or None.
    """

    _other_names: ClassVar = {
        "loader": BATCHES,
        "batch_iterator": BATCHES,
        "loss": "Report losses with adapter.report(losses).",
    }

    def __init__(self, training: Training, loader: Any) -> None:
        scheduler, sets_rates = training.scheduler, training.rates is not None
        super().__init__(training, Prefetch.of(scheduler))
        self._loader = loader
        feed = scheduler.feed
        assert feed is not None
        self._feed = feed
        feed.join(self._losses)
        self._losses.set_rates(scheduler.lr)
        self._reports = LossReports(
            scheduler,
            self._losses,
            optimizer=self.optimizer,
            has_loader=loader is not None,
            sets_rates=sets_rates,
            is_alone=self.num_ranks == 1,
            look=self._look_for_others,
        )
        if len(training.optimizers) == 1:
            self._stepper.watch_distance(scheduler)
        # A step pays for no attribute of a class that has `__getattr__`, which takes CPython ten times as long.
        self.report = self._reports.report  # type: ignore[method-assign]
        self._factors = [] if sets_rates else [RateFactor(scheduler, each) for each in training.optimizers]
        if loader is None:
            # Nothing is drawn from them before the first batch.
            self.state.resume_generators()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            loader = self.__dict__.get("_loader")
            if not name.startswith("_") and hasattr(loader, name):
                return getattr(loader, name)
            return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self._loader)

    def __bool__(self) -> bool:
        # Not that of a length, which streams have none of.
        return True

    def follow(
        self,
        *,
        size: int | Callable[[Any], int] | None = None,
        tokens: int | Callable[[Any], int] | None = None,
        sets_generators: bool = True,
    ) -> TrainerBatches:
        """Follow a trainer that takes its batches by itself; `report` then takes their losses.

        Args:
            size: Samples in a batch, or a function of it.
            tokens: Tokens in a batch, or a function of it.
            sets_generators: Whether a resumed run sets the random generators, as the trainer does not.
        """
        return self.scheduler.follow(size=size, tokens=tokens, sets_generators=sets_generators)

    @loop_method
    def epochs(self) -> Iterator[int]:
        """Yield epoch numbers, 0-based, until the budget is spent."""
        return self.scheduler.epoch_iterator()

    @loop_method
    def batches(
        self,
        loader: Any = None,
        *,
        size: int | Callable[[Any], int] | None = None,
        tokens: int | Callable[[Any], int] | None = None,
        ids: Callable[[Any], Any] | str | int | None = None,
        skip: Callable[[list[Any]], object] | None = None,
    ) -> Batches:
        """Pass on the batches of the loader as they are; see `R8Scheduler.batches`.

        Args:
            loader: The iterable; by default the one that `attach` got.
            size: Samples in a batch, or a function of it.
            tokens: Tokens in a batch, or a function of it.
            ids: Which samples a batch holds: a function of it, or its key; by default a `DataLoader` is observed.
            skip: Called with the ids in quarantine whenever there are others.

        Raises:
            ValueError: there is no loader; or the run was resumed, and batches are skipped besides.
        """
        loader = self._loader if loader is None else loader
        self._reports.is_other = self._loader is not None and loader is not self._loader
        if self._feed.source.is_resumed and is_skipping(loader):
            raise ValueError(
                "skip_first_batches() must be left out where the run is resumed, as it finds its place by itself, got "
                f"{loader!r}; give the loader as it is."
            )
        if loader is None:
            raise ValueError("loader must be given to attach() or here, got None; where there is none, use steps().")
        return self.scheduler.batches(loader, size=size, tokens=tokens, ids=ids, skip=skip)

    @loop_method
    def steps(self) -> Iterator[int]:
        """Yield the number of each step until the budget is spent; see `R8Scheduler.steps`."""
        return self.scheduler.steps()

    def report(self, *losses: torch.Tensor, ids: Any = None) -> Outcome:
        """Report the loss of the batch in hand, or of a step without one, before ``backward()``.

        Args:
            *losses: float[...], the training loss, of any shape, whose mean counts; several, as of a generator and a
                discriminator, are added up. They are only read. If the samples of the batch are known, a single loss
                with a value, or several, for each row holds the losses of those samples.
            ids: The ids of the samples, if `batches` does not know them; see `R8Scheduler.batches`.

        Returns:
            False if the step must not be taken, or if it was undone. "pending" is true.

        Raises:
            TypeError: a loss is not a tensor of floats.
            RuntimeError: the batch was reported already.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        return self._reports.report(*losses, ids=ids)

    def step(self, loss: torch.Tensor, *, losses: torch.Tensor | None = None, ids: Any = None) -> Outcome:
        """Report a loss, do ``backward()``, clip, and let the optimizer take its step unless the loss is refused.

        Args:
            loss: 0-dim, with its gradient.
            losses: The losses of the rows of the batch, which are reported in its place; they are only read.
            ids: As for `report`.

        Returns:
            The outcome: false if no step was taken, or if one was undone.

        Raises:
            TypeError: the loss is not a tensor, or the optimizer evaluates it by itself, as LBFGS does.
            RuntimeError: the batch was reported already.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        if isinstance(loss, torch.Tensor) and loss.numel() != 1:
            raise ValueError(
                f"loss must be one number, from which backward() goes, got the shape {tuple(loss.shape)}; call "
                "step(losses.mean(), losses=losses)."
            )
        reported, found = (loss if losses is None else losses,), self._reports.take(ids)
        values, count = values_of(reported, found)
        if losses is not None and not count and found is not None:
            self._feed.note_rows(found, losses)
        if found is None:
            outcome = Outcome(GOOD, self.scheduler.lr, None)
            return self._take_step(loss, None, lambda *_: outcome)
        return self._take_step(loss, found, functools.partial(self._reports.tell, found, values, count))

    def _num_noted(self) -> int:
        return self.scheduler.pace.turns

    def refuse(self) -> Outcome:
        """Report that the loss of the batch in hand could not be computed, as values are not finite.

        Raises:
            TrainingDiverged: losses stay refused after everything was tried.
        """
        return self.report(torch.tensor(float("nan")))
