"""The adapter: what a training loop calls in place of ``loss.mean()``, ``backward()`` and ``optimizer.step()``."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from .._validation import loop_method, no_attribute
from ..bridge.host import expect_rivals
from ..bridge.prefetch import Prefetch
from ..events.caller import say_at_exit
from ..guard.verdict import GOOD
from ..sources.ticket import Outcome, Ticket, check_ticket, refuse_weights
from ..state.callbacks import OWN, call_load
from ..state.tree import clone
from ..table.labels.predictions import Predictions
from ..table.losses import EXACT
from .loader import R8BatchSampler, find_batch, make_loader
from .loss_pipeline import LossPipeline, Training
from .losses import check_labels, cross_entropies, read_losses, say_what_is_unknown, single_labels
from .lr_scheduler import R8LRScheduler, ScheduleWatch
from .predictions import packed, packed_with
from .prepared import is_accelerated, is_skipping
from .stepper import BATCHES_WITHOUT_STEP, StepHooks
from .trainer_step import LastForward

if TYPE_CHECKING:
    from ..engine.feed.feed import Batches
    from ..engine.settings import Unpack
    from ..table.table import SampleTable
    from .loader import LoaderSettings

Self = TypeVar("Self", bound="Adapter")

OTHER_NAMES = {
    **dict.fromkeys(("epoch_iterator", "train", "fit"), "Loop over epochs: for epoch in adapter.epochs()."),
    "batch_iterator": "Loop over batches: for batch in adapter.batches().",
    "suspects": "It is adapter.table.suspects().",
    "save": "It is adapter.scheduler.save_checkpoint().",
    "backward": "adapter.step(loss) does backward() and the optimizer's step; or call loss.backward() after report().",
}

ROWS = (
    "the data set is one array, so each sample is one of its rows, without a label; for pairs, as in `for x, y in "
    "adapter.loader()`, give torch.utils.data.TensorDataset(x, y)."
)

UNKNOWN_SAMPLES = (
    "logits and targets must be left out where nobody knows which samples a batch holds, got them with the loss of "
    "step {}: say so with batches(ids=...), see docs/any_training.md."
)

VALIDATED = (
    "the loss of step {} has no gradient, and is of another loader than that of attach(): it counts as a step of "
    "training. To validate, iterate over your loader itself, and call adapter.log(val_loss=...)."
)

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


DRAWN, OWN_BATCHES = "the scheduler draws the batches", "the batches are your own"


def _refuse(where: str, **given: Any) -> None:
    """Raise ValueError if an argument is given that is for batches of the other kind."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} must be left out where {where}, got {value!r:.60}.")


class Adapter:
    """A model's training under a scheduler; `attach` makes it.

    The batches are drawn by the scheduler, or they are your own: `epochs`, `batches`, `loss`, `report` and `step` are
    the same. Two orders are right. ``step(loss(losses))`` does everything, and reports before the optimizer steps. In a
    loop with its own ``backward()`` and ``optimizer.step()``, call `report` with the losses before them, and skip them
    if its outcome is false; or call it after them.

    Over a loader of your own, what the adapter has no attribute for is that of the loader, so it can take the loader's
    name. As long as nothing goes wrong, the training does not change: weights, optimizer state, random generators and
    the order of the data are bit for bit those of the script without it.

    Args:
        training: The model, and all that belongs to its training.
        source: The data set that the scheduler draws from; or your own iterable of batches, or None.

    Attributes:
        scheduler: The R8Scheduler.
        optimizer: The optimizer that `attach` got.
        state: The state of the training.
        rates: Sets the learning rates; None if other code does.
        num_ranks: Processes that train the model together, each on its part of every batch.
        sampler: The batches, for your own `DataLoader`; only where the scheduler draws them.
    """

    sampler: R8BatchSampler

    def __init__(self, training: Training, source: Any) -> None:
        scheduler = training.scheduler
        self.scheduler, self.optimizer, self.state = scheduler, training.optimizers[0], training.state
        self.rates, self.num_ranks = training.rates, training.sharing.size
        self._model, self._stepper, self._sharing = training.model, training.stepper, training.sharing
        self._hand, self._ahead, again = training.hand, training.ahead, training.second_run
        self._second_run = again if again is not None and again.is_possible else None
        self._source, self._own, self._targets = source, training.own, training.state.targets
        self._num_looks = 0
        self._is_mean_noted = False
        self._feed = feed = scheduler.feed
        if feed is None:
            self.sampler = R8BatchSampler(scheduler, ahead=training.ahead, sharing=training.sharing)
        self._batches = Prefetch.of(scheduler)
        self._losses = LossPipeline(self._batches, training, has_loader=source is not None)
        self._batches.join(self._losses)
        if feed is None:
            self._stepper.watch_first_epoch()
            if hasattr(source, "shape"):
                scheduler.host.say_once("rows", ROWS, is_warning=False)
        else:
            feed.join(self._losses)
            if len(training.optimizers) == 1:
                self._stepper.count_steps()
        # On other devices each look would wait for them; shards and other kinds of tensors cannot be read like this.
        is_plain = all(each.is_cpu and isinstance(each, torch.nn.Parameter) for each in training.model.parameters())
        can_look = self.num_ranks == 1 and is_plain and not self.state.is_sharded
        stepper = self._stepper if can_look or self._stepper.counted is not None else None
        can_agree = self.num_ranks == 1 or isinstance(training.model, DistributedDataParallel)
        may_withhold = can_agree and not self.state.is_sharded
        are_own, is_alone = scheduler.host.rates.are_own, len(training.optimizers) == 1
        expect_rivals(scheduler, 1, len(training.optimizers))
        self._step_hooks: list[StepHooks] = []
        steps: dict[StepHooks, tuple[int, int]] = {}
        for each in training.optimizers if are_own else training.optimizers[:1]:
            watch = ScheduleWatch(each, self.state, accumulate=self._stepper.accumulate) if are_own else None
            self._step_hooks.append(
                StepHooks(
                    scheduler, each, stepper, looks=can_look, may_withhold=may_withhold, is_alone=is_alone,
                    schedules=watch, steps=steps,
                )
            )  # fmt: skip
            stepper = None
        self._losses.set_rates(scheduler.lr)
        if feed is not None and source is None:
            # Nothing is drawn from them before the first batch.
            self.state.resume_generators()

    # The loop.

    @loop_method
    def epochs(self) -> Iterator[int]:
        """Yield epoch numbers, 0-based, until the budget is spent."""
        for epoch in self.scheduler.epoch_iterator():
            yield epoch
            self._stepper.check_first_epoch(self.scheduler)
            if self._feed is None:
                self.flush()
                # However few batches there were, the optimizer has taken its step.
                self.scheduler.host.backup.end_update()

    @loop_method
    def batches(
        self,
        loader: Any = None,
        *,
        size: int | Callable[[Any], int] | None = None,
        tokens: int | Callable[[Any], int] | None = None,
        ids: Callable[[Any], Any] | str | int | None = None,
        skip: Callable[[list[Any]], object] | None = None,
    ) -> Batches | DataLoader[Any]:
        """The batches of an epoch: those that the scheduler draws, as `loader` gives them; or your own, as they are.

        Args:
            loader: Your iterable; by default the one that `attach` got. This and what follows is for your own batches,
                see `R8Scheduler.batches`.
            size: Samples in a batch, or a function of it.
            tokens: Tokens in a batch, or a function of it.
            ids: Which samples a batch holds: a function of it, or its key; by default a `DataLoader` is observed.
            skip: Called with the ids in quarantine whenever there are others.

        Raises:
            ValueError: there is no loader, or an argument is given where the scheduler draws the batches; or the run
                was resumed, and batches are skipped besides.
        """
        if self._feed is None:
            _refuse(DRAWN, loader=loader, size=size, tokens=tokens, ids=ids, skip=skip)
            return self.loader()
        loader = self._source if loader is None else loader
        self._losses.is_other = self._source is not None and loader is not self._source
        if self._feed.source.is_resumed and is_skipping(loader):
            raise ValueError(
                "skip_first_batches() must be left out where the run is resumed, as it finds its place by itself, got "
                f"{loader!r}; give the loader as it is."
            )
        if loader is None:
            raise ValueError("loader must be given to attach() or here, got None; where there is none, use steps().")
        return self.scheduler.batches(loader, size=size, tokens=tokens, ids=ids, skip=skip)

    @loop_method
    def loader(self, **settings: Unpack[LoaderSettings]) -> DataLoader[Any]:
        """A `DataLoader` over the data set; an error of one of its samples names the sample.

        ``accelerator.prepare`` leaves it as it is: it gives each process its part, on its device. Over your own loader
        there is none to make; see `batches`.

        Args:
            **settings: For the loader: ``num_workers``, ``pin_memory``, ``collate_fn`` and so on.

        Raises:
            ValueError: a setting that the scheduler decides (batch_size, shuffle, sampler, batch_sampler, drop_last).
            RuntimeError: the batches are your own.
        """
        if self._feed is not None:
            raise RuntimeError(
                f"loader() was called where the batches are your own, of {self._source!r}, so there is no DataLoader "
                "to make. Loop over batches: for batch in adapter.batches()."
            )
        loader = make_loader(self._source, self.sampler, settings=settings, is_ahead=self._ahead > 0)
        loader.hold_in(self._hand)
        if self.scheduler.pace.loop_of_epoch is None:
            self.scheduler.pace.loop_of_epoch = "adapter.loader()", "adapter.epochs()"
            say_at_exit(self.scheduler)
        if is_accelerated():
            loader.leave_to(self.optimizer.param_groups[0]["params"][0].device)
        return loader

    @loop_method
    def steps(self) -> Iterator[int]:
        """Yield the number of each step until the budget is spent, for a loop without batches.

        Raises:
            RuntimeError: the scheduler draws the batches.
        """
        if self._feed is None:
            raise RuntimeError(
                "steps() was called where the scheduler draws the batches, so each step has one. Loop over batches: "
                "for batch in adapter.batches()."
            )
        return self.scheduler.steps()

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
        with LastForward(self._model, lambda: self.num_ranks == 1 and self._num_noted() == before) as forward:
            yield
        if forward.has_raised:
            self.refuse()

    def _num_noted(self) -> int:
        """Losses noted or reported so far."""
        if self._feed is None:
            return self.sampler.batches.num_taken
        return self.scheduler.pace.turns + self.has_noted

    # Losses.

    def loss(
        self,
        losses: torch.Tensor,
        *unnamed: NoReturn,
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        exact: bool = True,
        ticket: Ticket | None = None,
        logits: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        kind: str = "classes",
    ) -> torch.Tensor:
        """Note the losses of the batch in hand, and reduce them.

        Args:
            losses: float[B, ...], unreduced, before any weights. Or 0-dim, their mean: then the losses of samples are
                estimated. Of your own batches whose samples are not known only the mean is reported.
            mask: bool[B, ...], which of them count: tokens that are not padding. The result is the mean over these.
            weights: float[B], weights of samples or their classes; the result is the weighted mean.
            exact: False if a loss is not one sample's own, as with mixup: only the mean is reported.
            ticket: The batch; by default the oldest that the loader handed out.
            logits: float[B, C], or float[B] or float[B, 1] for two classes: with them `SampleTable.suspects` also
                judges labels of a model that is far from fitting the data, and suggests others. They are read on
                their device, and three numbers a label come back with the loss. Of other kinds of labels see
                `learnit_r8.predictions_of`.
            targets: int[B], the labels trained on; with the logits.
            kind: "classes" (also of tokens and pixels), "multilabel" or "regression".

        Returns:
            0-dim, for `step` or ``backward()``.

        Raises:
            TypeError: the losses are not a tensor of floats; or logits or targets are not tensors.
            ValueError: a shape that does not fit the batch, or logits of a batch of your own whose samples are not
                known. Nothing was changed.
            RuntimeError: it is not clear which batch it is; or the losses noted before were not used.
        """
        if unnamed:
            raise TypeError(
                "loss() takes the losses alone, got something after them: adapter.cross_entropy(logits, targets) "
                "computes and notes them; of another loss, give what it returns with reduction='none'."
            )
        if self._losses.recorded is not None:
            raise RuntimeError(
                f"the losses of step {self._losses.recorded[0].ticket.step} must be used before the next ones are "
                "noted, got loss() again: call step(loss) after each loss(), or report() in a loop with its own "
                "backward() and optimizer.step(), or skip()."
            )
        shares = None
        found: Ticket | None = None
        if self._feed is None:
            found = find_batch(self.sampler.batches, ahead=self._ahead) if ticket is None else check_ticket(ticket)
            count = len(found.indices if self.num_ranks == 1 else self._sharing.part(found.indices))
            shares = None if found.weights is None else self._sharing.part(found.weights)
            is_known = True
        else:
            _refuse(OWN_BATCHES, ticket=ticket)
            count = self._losses.num_rows
            is_known = count > 0
            if not is_known and isinstance(losses, torch.Tensor) and losses.ndim:
                count = len(losses)
        labels = None
        if logits is not None or targets is not None:
            if not is_known:
                raise ValueError(UNKNOWN_SAMPLES.format(self.scheduler.global_step))
            labels = single_labels(logits, targets, losses=losses, mask=mask, exact=exact)
        read = read_losses(losses, count, mask=mask, weights=weights, shares=shares, exact=exact)
        if losses.ndim == 0 and is_known and not self._is_mean_noted:
            self._is_mean_noted = True
            say_what_is_unknown(self.scheduler.host, losses, count)
        values, num_classes = read.values, 0
        if labels is not None:
            values, num_classes = packed(values, *labels, kind)
        is_exact = read.is_exact and is_known
        if self._feed is not None:
            found, values = self._losses.take_own(), values if is_exact else values.mean()
        if found is not None:
            self._losses.record(found, values, count=count, part_size=1 if is_exact else None, num_classes=num_classes)
        self._losses.reduced = weakref.ref(read.loss)
        return read.loss

    def cross_entropy(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        *,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        ticket: Ticket | None = None,
    ) -> torch.Tensor:
        """Compute the cross entropy of the batch in hand, note it with what the logits say of the labels, reduce it.

        With ``Focus(noise_guard="weigh")`` a network that learns labels by heart is also held to what it has said of
        each sample so far, see `torch.ensemble_targets`.

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
        if self._feed is not None and not self._losses.num_rows:
            return self.loss(losses, weights=weights, ticket=ticket)
        loss = self.loss(losses, weights=weights, ticket=ticket, logits=logits, targets=targets)
        if self._targets is None or self._losses.recorded is None:
            return loss
        penalty = self._targets.penalty(self.scheduler, self._losses.recorded[0].ticket.indices, logits)
        return loss if penalty is None else loss + (penalty if weights is None else penalty * weights).mean()

    def report(
        self,
        *losses: torch.Tensor,
        ids: Any = None,
        ticket: Ticket | None = None,
        predictions: Predictions | None = None,
    ) -> Outcome:
        """Report the losses of the batch in hand, in a loop with its own ``backward()`` and ``optimizer.step()``.

        Args:
            *losses: float[B], or 0-dim, their mean; none for those that `loss` noted. Of your own batches, or of a step
                without one: float[...] of any shape, whose mean counts; several, as of a generator and a discriminator,
                are added up; and if the samples of the batch are known, a single loss with a value, or several, for
                each row holds the losses of those samples. They are only read.
            ids: The ids of the samples of your own batch, if `batches` does not know them; see `R8Scheduler.batches`.
            ticket: The batch; by default the oldest that the loader handed out. This and what follows is for batches
                that the scheduler draws.
            predictions: With float[B], what `learnit_r8.torch.predictions.predictions_of` returned, to judge labels.

        Returns:
            False if the step must not be taken, or if it was undone. "pending" is true.

        Raises:
            RuntimeError: there are no losses, or it is not clear which batch they belong to, or it was reported
                already; or the policy weights samples, and they were not given to `loss`, which applies the weights.
            TypeError: the losses are not a tensor of floats, or the predictions are not `Predictions`.
            ValueError: a shape that does not fit the batch, predictions without a loss for each sample, or an argument
                for batches of the other kind. Nothing was changed.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        if not losses and self._losses.recorded is None:
            raise RuntimeError("report() was called with no losses given or noted; pass them, or call loss() first.")
        if self._feed is not None:
            if ticket is not None or predictions is not None:
                _refuse(OWN_BATCHES, ticket=ticket, predictions=predictions)
        elif ids is not None:
            _refuse(DRAWN, ids=ids)
        elif len(losses) > 1:
            raise TypeError(
                f"report() takes the losses of one batch that the scheduler has drawn, got {len(losses)}; add them up."
            )
        noted = self._losses.tell()
        if not losses:
            return noted
        if self._feed is not None:
            own = self._losses.record_own(losses, ids)
            if own is None:
                return Outcome(GOOD, self.scheduler.lr, None)
            if self._losses.is_other and not (torch.is_grad_enabled() or losses[0].requires_grad):
                self.scheduler.host.say_once("validated", VALIDATED.format(own.step))
            outcome = self._losses.tell()
            if not outcome:
                self._look_for_others(*losses)
            if not self.scheduler.controller.lineage.updates % BATCHES_WITHOUT_STEP:
                self._stepper.check_steps(self.scheduler)
            return outcome
        found = self.in_hand if ticket is None else check_ticket(ticket)
        refuse_weights(self.scheduler.policy, found)
        count = len(self._sharing.part(found.indices))
        read = read_losses(losses[0], count)
        values, num_classes = read.values, 0
        if predictions is not None:
            check_labels(losses[0])
            values, num_classes = packed_with(values, predictions)
        part_size = 1 if read.is_exact else None
        self._losses.record(found, values, count=count, part_size=part_size, num_classes=num_classes)
        return self._losses.tell()

    def step(self, loss: torch.Tensor, *, losses: torch.Tensor | None = None, ids: Any = None) -> Outcome:
        """Report the losses, do ``backward()``, clip, and let the optimizer take its step unless they are refused.

        Args:
            loss: 0-dim, with its gradient: what `loss` returned, or something computed from it. Of your own batches it
                is itself reported if none was noted.
            losses: The losses of the rows of the batch, which are reported in its place; they are only read.
            ids: As for `report`.

        Returns:
            The outcome: false if no step was taken, or if one was undone.

        Raises:
            TypeError: the optimizer evaluates the loss by itself, as LBFGS does; or the loss is not a tensor.
            ValueError: the loss is not one number, or losses of a shape that does not fit the batch.
            RuntimeError: there are no losses of a batch that the scheduler has drawn; or it was reported already.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        pipeline, stepper, r8 = self._losses, self._stepper, self.scheduler
        if self._feed is None:
            if losses is not None:
                self.loss(losses)
            if pipeline.recorded is None:
                raise RuntimeError(
                    "step() was called before the losses of this batch were given to loss(). Ask for one loss per "
                    'sample and pass them through it: loss = adapter.loss(cross_entropy(outputs, labels, reduction="'
                    'none")); adapter.step(loss).'
                )
        elif isinstance(loss, torch.Tensor) and loss.numel() != 1:
            raise ValueError(
                f"loss must be one number, from which backward() goes, got the shape {tuple(loss.shape)}; call "
                "step(losses.mean(), losses=losses)."
            )
        elif pipeline.recorded is None:
            pipeline.record_own((loss if losses is None else losses,), ids)
            if losses is None:
                pipeline.reduced = weakref.ref(loss)
        # After the end of the user's own batches there is no ticket, and nothing is reported.
        ticket = None if pipeline.recorded is None else pipeline.recorded[0].ticket
        ends_epoch = self._feed is None and ticket is not None and r8.pace.ends_epoch(ticket.step + 1)
        # Weights that are tested must not change before the loss is known.
        is_test = ticket is None or ticket.chunk is r8.controller.experiment.chunk
        waits = not stepper.is_scaled or (is_test and ticket is not None)
        with self._sharing.watching():
            is_due = stepper.backward(loss, is_last=ends_epoch)
            norm = stepper.clip() if is_due and not (waits and stepper.is_scaled) else None
        skipped = stepper.apply() if is_due and not waits else None
        again, may_step = None, True
        if self._second_run is not None and not is_test:
            again, norm, may_step = self._second_run.of(loss, norm)
        if ticket is not None:
            pipeline.judge_with(loss)
        self._hand.steps_later = waits or not is_due
        try:
            outcome = Outcome(GOOD, r8.lr, None) if ticket is None else pipeline.tell(norm, skipped, again)
        finally:
            self._hand.steps_later = False
        if outcome and may_step and is_due and waits:
            if stepper.is_scaled:
                stepper.clip()
            stepper.apply()
        if is_due or not outcome:
            stepper.clear()
        if not outcome:
            self._look_for_others(loss)
        if ends_epoch:
            pipeline.settle()
            r8.host.backup.end_update()
            pipeline.set_rates()
            if r8.is_over or r8.requests.is_pending:
                # Else the checkpoint is written once the next epoch is asked for, after what follows this one.
                pipeline.between_steps()
            r8.host.leave_epoch()
        return outcome

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

    def refuse(self) -> Outcome:
        """Report that the loss of the batch in hand could not be computed, as values are not finite.

        Raises:
            RuntimeError: it is not clear which batch it is.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        if self._feed is not None:
            return self.report(torch.tensor(float("nan")))
        return self.report(self.unknown_losses())

    def unknown_losses(self) -> torch.Tensor:
        """Return NaN for the losses of the batch in hand, in the form of earlier reports: of samples, or the mean."""
        is_exact = self.scheduler.table.storage.part_size == EXACT
        return torch.full((len(self._sharing.part(self.in_hand.indices)),) if is_exact else (), float("nan"))

    def skip(self) -> None:
        """Skip the batch in hand, whether or not its losses were noted.

        One that the scheduler has drawn comes again at the end of the epoch; one of your own does not, and counts as no
        step.
        """
        noted, self._losses.recorded = self._losses.recorded, None
        ticket = None if noted is None else noted[0].ticket
        if self._feed is not None:
            source = self._feed.source
            ticket, source.open = source.open if ticket is None else ticket, None
        elif ticket is None:
            self.sampler.skip()
        if ticket is not None and ticket.is_out:
            self.scheduler.give_up(ticket, on_purpose=True)

    # What is known.

    @property
    def in_hand(self) -> Ticket:
        """The batch of the next loss: the oldest that the loader handed out, whole, on several processes too.

        Raises:
            RuntimeError: no batch is out, or it is not clear which it is.
        """
        if self._feed is None:
            return find_batch(self.sampler.batches, ahead=self._ahead)
        ticket = self._feed.source.open
        if ticket is None:
            raise RuntimeError(f"no batch is out at step {self.scheduler.global_step}; take one from batches() first.")
        return ticket

    @property
    def has_noted(self) -> bool:
        """Whether losses were noted and are not reported yet."""
        return self._losses.recorded is not None

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
    def table(self) -> SampleTable:
        """What is known of each sample; see `SampleTable`."""
        return self.scheduler.table

    def summary(self) -> str:
        """Describe the run so far in a few lines of text, after the losses on their way have come."""
        self.flush()
        return self.scheduler.summary()

    def log(self, step: int | None = None, **metrics: Any) -> None:
        """Log validation metrics, or any other numbers; see `R8Scheduler.log`."""
        self.scheduler.log(step, **metrics)

    @property
    def lr_scheduler(self) -> R8LRScheduler:
        """A learning-rate scheduler of torch's kind, for code that steps, shows or saves one."""
        return R8LRScheduler(self)

    @property
    def num_waits(self) -> int:
        """How often a step waited for the device to read a loss, not counting ends of epochs, backups, checkpoints."""
        readback = self._losses.readback
        return 0 if readback is None else readback.num_waits

    # State.

    def check(self) -> bool:
        """Look at the weights now, and put back what is not finite; see `R8Scheduler.check`."""
        self.flush()
        return self.scheduler.check()

    def load_best(self) -> float:
        """Put the best model back, by ``monitor``; see `R8Scheduler.load_best`."""
        self.flush()
        return self.scheduler.load_best()

    def hold(self, batch: Any) -> None:
        """Hold a batch by reference until the next one, where a trainer hands it over by itself; see ``run_batch``."""
        self._losses.hand_out(batch)

    def judge_with(self, loss: torch.Tensor) -> None:
        """Have the loss that a trainer trains on judged along with those of the next report; it may hold more."""
        self._losses.judge_with(loss)

    def look_before_step(self, optimizer: Any) -> None:
        """Look at the gradient of a step that is about to be taken, where an optimizer computes it within its step."""
        for each in self._step_hooks:
            if optimizer in each.optimizers:
                each.withhold(optimizer)

    @contextlib.contextmanager
    def before_gradient(self) -> Iterator[None]:
        """A ``with`` block around a report, for a trainer that computes the gradient afterwards and steps all the same.

        If the loss is refused, the gradients that were added up before it stay, as if it had been left out by hand. Of
        several processes they are dropped: they may be added up over processes with that of the last batch.
        """
        self._stepper.adds_later = self.num_ranks == 1
        try:
            yield
        finally:
            self._stepper.adds_later = False

    def flush(self) -> None:
        """Wait for all losses on their way, and report them."""
        self._losses.settle()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole training: the scheduler as tensors under "scheduler", model, optimizer etc. under "model".

        What a ``state_callback`` of your own returns is under "callbacks". Where the adapter stands in for a loader of
        your own that has a state (`StatefulDataLoader`), it is that of the loader; `lr_scheduler` has R8's.

        With several processes all must call it: each gets whole tensors, and the random generators of all.
        """
        if self._feed is not None and hasattr(self._source, "state_dict"):
            return self._source.state_dict()  # type: ignore[no-any-return]
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
        if self._feed is not None and hasattr(self._source, "load_state_dict"):
            self._source.load_state_dict(state)
            return
        if not {"scheduler", "model"} <= state.keys():
            raise ValueError(f"state must be what state_dict() returned, got the keys {sorted(state)}.")
        self.state.check(state["model"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.state.take_over(clone(state["model"]))
        if OWN in state and self._own is not None and self._own.load is not None:
            call_load(self._own.load, clone(state[OWN]), from_ram=True, is_resume=True)
        self._losses.set_rates(self.scheduler.lr)

    def load_scheduler(self, state: Mapping[str, Any]) -> None:
        """Take over the state of the scheduler alone; losses on their way are dropped.

        Raises:
            ValueError: it is of another run. Then nothing was changed.
        """
        if self.rates is not None:
            # Whoever loads the scheduler has loaded the optimizer too, with its rates.
            self.rates.expect_any()
        self.scheduler.load_state_dict(state)
        self._losses.set_rates(self.scheduler.lr)

    # The end.

    def close(self) -> None:
        """Finish: report, save what is due, tell listeners. Safe to call twice."""
        self.scheduler.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.scheduler.__exit__(*error)

    # In place of a loader.

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self._source) if self._feed is not None else self.scheduler.steps_per_epoch

    def __bool__(self) -> bool:
        # Not that of a length, which streams have none of.
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.scheduler!r})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            own, scheduler = self.__dict__, self.__dict__.get("scheduler")
            if not name.startswith("_") and own.get("_feed") is not None and hasattr(own.get("_source"), name):
                return getattr(own["_source"], name)
            meant: Mapping[str, str] = OTHER_NAMES
            if not name.startswith("_") and hasattr(scheduler, name):
                meant = {name: f"It is adapter.scheduler.{name}.", **meant}
            raise no_attribute(self, name, meant)
