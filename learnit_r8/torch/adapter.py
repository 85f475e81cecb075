"""The adapter: what a training loop calls in place of ``loss.mean()``, ``backward()`` and ``optimizer.step()``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch.utils.data import DataLoader

from .._validation import loop_method
from ..checkpoint.callbacks import OWN, call_load
from ..checkpoint.tree import clone
from ..events.caller import say_at_exit
from ..sampling.ticket import Outcome, Ticket, refuse_weights
from ..table.labels.predictions import Predictions
from ..table.losses import EXACT
from .attached_model import AttachedModel
from .batches.loader import make_loader
from .batches.sampler import R8BatchSampler
from .flight.second_run import with_second
from .loss_pipeline import Training
from .losses import check_labels, cross_entropies, read_losses, read_parts, say_what_is_unknown, single_labels
from .own_loop.rate_factor import RateFactor
from .predictions import packed, packed_with
from .prepared import is_accelerated

if TYPE_CHECKING:
    from ..engine.settings import Unpack
    from .batches.loader import LoaderSettings

ROWS = (
    "the data set is one array, so each sample is one of its rows, without a label; for pairs, as in `for x, y in "
    "adapter.loader()`, give torch.utils.data.TensorDataset(x, y)."
)

EPOCHS = "Loop over epochs: for epoch in adapter.epochs()."
LOADER = "Loop over batches: for batch in adapter.loader()."


class Adapter(AttachedModel):
    """A model's training under a scheduler; `attach` makes it.

    Two orders are right. ``step(loss(losses))`` does everything, and reports before the optimizer steps. In a loop with
    its own ``backward()`` and ``optimizer.step()``, call `report` with the losses before them, and skip them if its
    outcome is false; or call it after them.

    Attributes:
        sampler: The batches, for your own `DataLoader`.
    """

    _other_names: ClassVar = {
        **dict.fromkeys(("epoch_iterator", "train", "fit"), EPOCHS),
        **dict.fromkeys(("batch_iterator", "batches"), LOADER),
    }

    def __init__(self, training: Training, *, dataset: Any, owner: Adapter | None) -> None:
        scheduler = training.scheduler
        self.sampler = R8BatchSampler(scheduler, ahead=training.ahead, sharing=training.sharing)
        super().__init__(training, self.sampler.batches)
        self._own = training.own
        self._dataset = dataset
        # Those of other data sets for the same model, whose steps this one takes.
        self._others: list[Adapter] = []
        if owner is not None:
            owner._others.append(self)
        self._has_loader = self._counts_epochs = self._is_mean_noted = False
        self._stepper.watch_first_epoch()
        if scheduler.keeps_rates:
            self._factor = RateFactor(scheduler, self.optimizer)
        self._losses.set_rates(scheduler.lr)
        if hasattr(dataset, "shape"):
            scheduler.host.say_once("rows", ROWS, is_warning=False)

    @property
    def in_hand(self) -> Ticket:
        """The batch of the next loss: the oldest that the loader handed out, whole, on several processes too.

        Raises:
            RuntimeError: no batch is out, or it is not clear which it is.
        """
        return self._losses.find(None)

    @property
    def has_noted(self) -> bool:
        """Whether losses were noted and are not reported yet."""
        return self._losses.recorded is not None

    @loop_method
    def epochs(self) -> Iterator[int]:
        """Yield epoch numbers, 0-based, until the budget is spent."""
        self._counts_epochs = True
        if self.finished:
            # Says so, and yields nothing.
            yield from self.scheduler.epoch_iterator()
        while not self.finished:
            yield self.scheduler.current_epoch
            self._stepper.check_first_epoch(self.scheduler)
            if self.num_ranks == 1 and self.scheduler.requests.is_pending:
                # Else the loop would begin another epoch, which has no batch, after stop().
                self.flush()
                self._losses.between_steps()

    @loop_method
    def loader(self, *, numbered: bool = False, **settings: Unpack[LoaderSettings]) -> DataLoader[Any]:
        """A `DataLoader` over the data set; an error of one of its samples names the sample.

        ``accelerator.prepare`` leaves it as it is: it gives each process its part, on its device.

        Args:
            numbered: Whether it gives ``(ticket, batch)``; `loss` and `report` take the ticket. Needed with
                ``in_order=False``.
            **settings: For the loader: ``num_workers``, ``pin_memory``, ``collate_fn`` and so on.

        Raises:
            ValueError: a setting that the scheduler decides (batch_size, shuffle, sampler, batch_sampler, drop_last).
        """
        sampler = self.sampler
        if numbered:
            sampler = R8BatchSampler(self.scheduler, ahead=self._ahead, sharing=self._sharing, numbered=True)
        loader = make_loader(self._dataset, sampler, numbered=numbered, settings=settings, is_ahead=self._ahead > 0)
        loader.hold_in(self._hand)
        if not self._has_loader:
            say_at_exit(self)
        self._has_loader = True
        if is_accelerated():
            loader.leave_to(self.optimizer.param_groups[0]["params"][0].device)
        return loader

    def loss(
        self,
        losses: torch.Tensor,
        *unnamed: NoReturn,
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        exact: bool = True,
        ticket: int | Ticket | None = None,
        logits: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        kind: str = "classes",
    ) -> torch.Tensor:
        """Note the losses of the batch in hand, and reduce them.

        Args:
            losses: float[B, ...], unreduced, before any weights. Or 0-dim, their mean: then the losses of samples are
                estimated.
            mask: bool[B, ...], which of them count: tokens that are not padding. The result is the mean over these.
            weights: float[B], weights of samples or their classes; the result is the weighted mean.
            exact: False if a loss is not one sample's own, as with mixup: only the mean is reported.
            ticket: The batch; by default the oldest that the loader handed out.
            logits: float[B, C], or float[B] or float[B, 1] for two classes: with them `SampleTable.suspects` also
                judges labels of a model that is far from fitting the data, and suggests others. They are read on
                their device, and three numbers a label come back with the loss. Of other kinds of labels see
                `learnit_r8.predictions_of`.
            targets: int[B], the labels trained on; with the logits.
            kind: "classes" (also of tokens and pixels), "multilabel", "ordinal" or "regression".

        Returns:
            0-dim, for `step` or ``backward()``.

        Raises:
            TypeError: the losses are not a tensor of floats; or logits or targets are not tensors.
            ValueError: a shape that does not fit the batch. Nothing was changed.
            RuntimeError: it is not clear which batch it is; or the losses noted before were not used.
        """
        if unnamed:
            raise TypeError(
                "loss() takes the losses alone, got something after them: adapter.cross_entropy(logits, targets) "
                "computes and notes them; of another loss, give what it returns with reduction='none'."
            )
        self._losses.check_used()
        found = self._losses.find(ticket)
        count = self._losses.count(found)
        shares = None if found.weights is None else self._sharing.part(found.weights)
        labels = None
        if logits is not None or targets is not None:
            labels = single_labels(logits, targets, losses=losses, mask=mask, exact=exact)
        read = read_losses(losses, count, mask=mask, weights=weights, shares=shares, exact=exact)
        if losses.ndim == 0 and not self._is_mean_noted:
            self._is_mean_noted = True
            say_what_is_unknown(self.scheduler.host, losses, count)
        values, num_classes = read.values, 0
        if labels is not None:
            values, num_classes = packed(values, *labels, kind)
        self._losses.record(found, values, count=count, part_size=1 if read.is_exact else None, num_classes=num_classes)
        return read.loss

    def cross_entropy(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        *,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        ticket: int | Ticket | None = None,
    ) -> torch.Tensor:
        """Compute the cross entropy of the batch in hand, note it with what the logits say of the labels, reduce it.

        Args:
            logits: float[B, C]; or float[B] or float[B, 1], the logit of class 1 of two.
            targets: int[B], classes in [0, C); -1 or -100 for samples without a label: their loss is 0, and the mean
                is that of the others.
            class_weights: float[C]; the result is the weighted mean, as that of `torch.nn.CrossEntropyLoss`. The losses
                reported have no weights.
            label_smoothing: In [0, 1], as in torch.
            ticket: As for `loss`.

        Returns:
            0-dim, for `step` or ``backward()``.

        Raises:
            ValueError: the shapes or dtypes are not these; or, on a CPU, a target is outside [0, C). Nothing was
                changed.
            RuntimeError: as for `loss`.
        """
        losses, weights = cross_entropies(logits, targets, class_weights=class_weights, label_smoothing=label_smoothing)
        return self.loss(losses, weights=weights, ticket=ticket, logits=logits, targets=targets)

    def report(
        self,
        losses: torch.Tensor | None = None,
        *,
        ticket: int | Ticket | None = None,
        part_size: int | None = None,
        predictions: Predictions | None = None,
    ) -> Outcome:
        """Report the losses of the batch in hand, in a loop with its own ``backward()`` and ``optimizer.step()``.

        Args:
            losses: float[B], or 0-dim, or with ``part_size`` the means of parts, as `R8Scheduler.report` takes them;
                None for those that `loss` noted.
            ticket: The batch; by default the oldest that the loader handed out.
            part_size: Samples in a part.
            predictions: With float[B], what `learnit_r8.torch.predictions.predictions_of` returned, to judge labels.

        Returns:
            False if the step must not be taken, or if it was undone. "pending" is true.

        Raises:
            RuntimeError: there are no losses, or it is not clear which batch they belong to; or the policy weights
                samples, and they were not given to `loss`, which applies the weights.
            TypeError: the losses are not a tensor of floats, or the predictions are not `Predictions`.
            ValueError: a shape that does not fit the batch, or predictions without a loss for each sample. Nothing was
                changed.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        if losses is None and self._losses.recorded is None:
            raise RuntimeError("report() was called with no losses given or noted; pass them, or call loss() first.")
        self._losses.tell()
        if losses is None:
            return self.outcome
        found = self._losses.find(ticket)
        refuse_weights(self.scheduler.policy, found)
        count = self._losses.count(found)
        num_classes = 0
        if part_size is None:
            read = read_losses(losses, count)
            values, size = read.values, 1 if read.is_exact else None
        else:
            values, size = read_parts(losses, count, part_size), part_size
        if predictions is not None:
            check_labels(losses, exact=size == 1)
            values, num_classes = packed_with(values, predictions)
        self._losses.record(found, values, count=count, part_size=size, num_classes=num_classes)
        return self._losses.tell()

    def step(self, loss: torch.Tensor) -> Outcome:
        """Do ``backward()``, clip, and let the optimizer take its step unless the guard refuses the losses.

        Args:
            loss: What `loss` returned, or something computed from it; for several adapters of one model, their sum.

        Returns:
            The outcome: false if no step was taken, or if one was undone.

        Raises:
            TypeError: the optimizer evaluates the loss by itself, as LBFGS does; or the loss is not a tensor.
            RuntimeError: `loss` was not called before.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        recorded = self._losses.recorded
        if recorded is None:
            raise RuntimeError(
                "step() was called before the losses of this batch were given to loss(). Ask for one loss per sample "
                'and pass them through it: loss = adapter.loss(cross_entropy(outputs, labels, reduction="none")); '
                "adapter.step(loss)."
            )
        ticket = recorded[0].ticket
        ends_epoch = self.scheduler.pace.ends_epoch(ticket.step + 1)
        outcome = self._take_step(loss, ticket, self._tell_all, is_last=ends_epoch)
        if ends_epoch:
            self._losses.settle()
            self.scheduler.controller.end_update()
            self._losses.set_next_rates()
            if self.scheduler.is_over or self.scheduler.requests.is_pending:
                # Else the checkpoint is written once the next epoch is asked for, after what follows this one.
                self._losses.between_steps()
            self.scheduler.host.leave_epoch()
        return outcome

    def _tell_all(self, norm: torch.Tensor | None, skipped: torch.Tensor | None, again: torch.Tensor | None) -> Outcome:
        """Report this batch and those of adapters that share the model; an outcome that forbids the step goes first."""
        if self._losses.recorded is not None:
            sent, values = self._losses.recorded
            self._losses.recorded = sent, with_second(values, again)
        outcome = self._losses.tell(norm, skipped)
        outcomes = [outcome, *(other._losses.tell() for other in self._others)]
        if self._others and any(each.rolled_back_to is not None for each in outcomes):
            for adapter in (self, *self._others):
                adapter._losses.drop()
        return next((each for each in outcomes if not each), outcome)

    def _num_noted(self) -> int:
        return self.sampler.batches.num_taken

    def refuse(self) -> Outcome:
        """Report that the loss of the batch in hand could not be computed, as values are not finite.

        Raises:
            RuntimeError: it is not clear which batch it is.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        found = self.in_hand
        losses, kind = self.unknown_losses(found), self.scheduler.table.storage.part_size
        return self.report(losses, ticket=found, part_size=kind if losses.ndim and kind != EXACT else None)

    def unknown_losses(self, ticket: Ticket) -> torch.Tensor:
        """Return NaN in place of a batch's losses, in the form of earlier reports: of samples, of parts, or the mean.

        Args:
            ticket: The batch.
        """
        kind = self.scheduler.table.storage.part_size
        shape = (-(-self._losses.count(ticket) // kind),) if kind else ()
        return torch.full(shape, float("nan"))

    def skip(self) -> None:
        """Skip the batch in hand, whether or not its losses were noted; it comes again at the end of the epoch."""
        if not self._losses.skip():
            self.sampler.skip()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole training: the scheduler as tensors under "scheduler", model, optimizer etc. under "model".

        What a ``state_callback`` of your own returns is under "callbacks".

        With several processes all must call it: each gets whole tensors, and the random generators of all.
        """
        # First, as it reports the losses on their way, which may put the model back.
        scheduler = self.lr_scheduler.state_dict()
        with self._sharing.watching():
            state = {"scheduler": scheduler, "model": self.state.collect()}
        return state if self._own is None or self._own.state is None else {**state, OWN: self._own.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, or a copy of it.

        Raises:
            ValueError: it is of another run or model. Then nothing was changed.
        """
        if not {"scheduler", "model"} <= state.keys():
            raise ValueError(f"state must be what state_dict() returned, got the keys {sorted(state)}.")
        self.state.check(state["model"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.state.take_over(clone(state["model"]))
        if OWN in state and self._own is not None and self._own.load is not None:
            call_load(self._own.load, clone(state[OWN]), from_ram=True, is_resume=True)
        self._losses.set_rates(self.scheduler.lr)

    def close(self) -> None:
        """Finish: report, save what is due, tell listeners. Safe to call twice."""
        super().close()
        self._warn_of_one_epoch()

    def _warn_at_exit(self, error: BaseException | None) -> None:
        if error is None:
            self._warn_of_one_epoch()

    def _warn_of_one_epoch(self) -> None:
        """Say so if the loop was over the loader alone, which ends with the epoch."""
        r8 = self.scheduler
        is_one = r8.pace.place == r8.steps_per_epoch and not r8.is_over
        if is_one and self._has_loader and not self._counts_epochs:
            r8.host.say_once(
                "one epoch",
                f"the run was closed at step {r8.global_step} of {r8.total_steps or '?'}: adapter.loader() ends with "
                "the epoch. To train all epochs, loop over it within: for epoch in adapter.epochs().",
            )

    def __iter__(self) -> NoReturn:
        raise TypeError(f"an Adapter must be looped over by epochs, got a loop over itself. {EPOCHS} {LOADER}")

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if not any(error):
            self._warn_of_one_epoch()
