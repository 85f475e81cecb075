"""The adapter for the user's own batches: it watches them, and heals the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..._adapters.prefetch import Prefetch
from ..._validation import loop_method
from ...engine.feed.samples import note_rows
from ...guard.verdict import GOOD
from ...sampling.ticket import Outcome
from ..attached_model import AttachedModel
from ..loss_pipeline import Training
from ..prepared import is_skipping
from .loss_reports import LossReports, values_of
from .rate_factor import RateFactor

if TYPE_CHECKING:
    from ...engine.feed.batches import Batches
    from ...engine.feed.trainer_batches import TrainerBatches


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
        feed = scheduler.host.feed
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
        if self._feed.place.is_resumed and is_skipping(loader):
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
            note_rows(self._feed.run, found, losses)
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
