"""The adapter: what a training loop calls in place of ``loss.mean()``, ``backward()`` and ``optimizer.step()``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from ..copies import clone
from ..ticket import Outcome, Ticket
from .facade import R8LRScheduler
from .loader import make_loader
from .losses import read_losses, read_parts
from .rates import GroupRates
from .reports import Reports
from .sampler import R8BatchSampler
from .sharing import Sharing
from .state import ModelState
from .stepper import Stepper

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

MEAN_LOSS = "losses of samples are estimated from batch means; with reduction='none' they would be known."


class Adapter:
    """A model's training under a scheduler; `attach` makes it.

    Two orders are right. ``step(loss(losses))`` does everything, and reports before the optimizer steps. In a loop with
    its own ``backward()`` and ``optimizer.step()``, call `report` with the losses before them, and leave them out
    where its outcome is false; or after them.

    Attributes:
        scheduler: The R8Scheduler.
        optimizer: As given to `attach`.
        sampler: The batches, for a `DataLoader` of your own.
        rates: Sets the learning rates; None if another adapter does.
    """

    def __init__(
        self,
        scheduler: R8Scheduler,
        *,
        dataset: Any,
        optimizer: Any,
        state: ModelState,
        stepper: Stepper,
        rates: GroupRates | None,
        sharing: Sharing,
        ahead: int,
    ) -> None:
        self.scheduler, self.optimizer, self.rates = scheduler, optimizer, rates
        self.sampler = R8BatchSampler(scheduler, ahead=ahead, sharing=sharing)
        self.state = state
        self._dataset, self._sharing, self._ahead, self._stepper = dataset, sharing, ahead, stepper
        self._reports = Reports(scheduler, rates=rates, sharing=sharing, ahead=ahead)
        self._others: list[Adapter] = []
        desk = self._reports.desk
        desk.between_steps, desk.before_iter, desk.before_turn = self._between, self._before_iter, self._before_turn
        state.after_load = self._reports.note_put_back
        scheduler.settle, scheduler.taken_over = self.flush, self._reports.forget
        self._reports.set_rates(scheduler.lr)

    @property
    def outcome(self) -> Outcome:
        """What became of the last report; "pending" as long as the losses are on their way from the device."""
        return self._reports.outcome

    @property
    def lr_scheduler(self) -> R8LRScheduler:
        """For code that wants a learning-rate scheduler of torch's, to step, to show or to save."""
        return R8LRScheduler(self)

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or the run was stopped."""
        self.flush()
        return self.scheduler.pace.is_over

    @property
    def num_waits(self) -> int:
        """How often a step waited for the device because of us; ends of epochs, backups and checkpoints aside."""
        readback = self._reports.readback
        return 0 if readback is None else readback.num_waits

    def epochs(self) -> Iterator[int]:
        """Yield epoch numbers, 0-based, until the budget is spent."""
        while not self.finished:
            yield self.scheduler.current_epoch

    def loader(self, *, numbered: bool = False, **settings: Any) -> DataLoader[Any]:
        """A `DataLoader` over the data set; an error of one of its samples names the sample.

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
        return make_loader(self._dataset, sampler, numbered=numbered, settings=settings)

    def loss(
        self,
        losses: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        exact: bool = True,
        ticket: int | Ticket | None = None,
    ) -> torch.Tensor:
        """Note the losses of the batch in hand, and reduce them.

        Args:
            losses: float[B, ...], unreduced, before any weights. Or 0-dim, their mean: then the losses of samples are
                estimated.
            mask: bool[B, ...], which of them count: tokens that are no padding. The result is the mean over these.
            weights: float[B], weights of samples or their classes; the result is the weighted mean.
            exact: False where a loss is not one sample's own, with mixup for instance: only the mean is reported.
            ticket: The batch; by default the oldest that the loader handed out.

        Returns:
            0-dim, for `step` or ``backward()``.

        Raises:
            TypeError: the losses are not a tensor of floats.
            ValueError: a shape that does not fit the batch. Nothing was changed.
            RuntimeError: it cannot be told which batch it is.
        """
        self._reports.tell()
        found = self._reports.find(ticket)
        count = self._count(found)
        shares = None if found.weights is None else self._sharing.part(found.weights)
        read = read_losses(losses, count, mask=mask, weights=weights, shares=shares, exact=exact)
        if losses.ndim == 0:
            self.scheduler.announcer.note_once("mean loss", MEAN_LOSS)
        self._reports.record(found, read.values, count=count, part_size=1 if read.is_exact else None)
        return read.loss

    def report(
        self, losses: torch.Tensor | None = None, *, ticket: int | Ticket | None = None, part_size: int | None = None
    ) -> Outcome:
        """Report the losses of the batch in hand, in a loop with its own ``backward()`` and ``optimizer.step()``.

        Args:
            losses: float[B], or 0-dim, or with ``part_size`` the means of parts, as `R8Scheduler.report` takes them;
                None for those that `loss` noted.
            ticket: The batch; by default the oldest that the loader handed out.
            part_size: Samples in a part.

        Returns:
            False if the step must not be taken, or if it was taken back. "pending" is true.

        Raises:
            RuntimeError: there are no losses, or it cannot be told which batch they are of.
            TypeError: the losses are not a tensor of floats.
            ValueError: a shape that does not fit the batch. Nothing was changed.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        if losses is None and self._reports.recorded is None:
            raise RuntimeError("report() was called with no losses given or noted; pass them, or call loss() before.")
        self._reports.tell()
        if losses is None:
            return self.outcome
        found = self._reports.find(ticket)
        count = self._count(found)
        if part_size is None:
            read = read_losses(losses, count)
            values, size = read.values, 1 if read.is_exact else None
        else:
            values, size = read_parts(losses, count, part_size), part_size
        self._reports.record(found, values, count=count, part_size=size)
        return self._reports.tell()

    def step(self, loss: torch.Tensor) -> Outcome:
        """Do ``backward()``, clip, and let the optimizer take its step unless the guard refuses the losses.

        Args:
            loss: What `loss` returned, or something made of it; of several adapters of one model, their sum.

        Returns:
            What became of it: false if no step was taken, or if one was taken back.

        Raises:
            TypeError: the optimizer evaluates the loss by itself, as LBFGS does; or the loss is no tensor.
            RuntimeError: `loss` was not called before.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        recorded, stepper = self._reports.recorded, self._stepper
        if recorded is None:
            raise RuntimeError("step() was called with no losses noted; call loss() with those of the batch before.")
        ends_epoch = self._ends_epoch(recorded[0].ticket)
        with self._sharing.watching():
            is_due = stepper.backward(loss, is_last=ends_epoch)
        norm = stepper.clip() if is_due else None
        skipped = stepper.apply() if is_due and stepper.is_scaled else None
        outcome = self._tell_all(norm, skipped)
        if outcome and is_due and not stepper.is_scaled:
            stepper.apply()
        if is_due or not outcome:
            stepper.clear()
        if ends_epoch:
            # Not only when the next epoch begins: validation may come before, and may fail.
            self.flush()
            self._between()
        return outcome

    def _tell_all(self, norm: torch.Tensor | None, skipped: torch.Tensor | None) -> Outcome:
        """Report this batch and those of adapters that share the model; the outcome that speaks against the step."""
        outcome = self._reports.tell(norm, skipped)
        if not self._others:
            return outcome
        outcomes = [outcome, *(other._reports.tell() for other in self._others)]
        if any(each.rolled_back_to is not None for each in outcomes):
            for adapter in (self, *self._others):
                adapter._reports.drop()
        return next((each for each in outcomes if not each), outcome)

    def skip(self) -> None:
        """Pass over the batch in hand; it comes once more at the end of the epoch."""
        self._reports.tell()
        self.sampler.skip()

    def flush(self) -> None:
        """Report everything that is on its way, waiting for it."""
        self._reports.flush()

    def state_dict(self) -> dict[str, Any]:
        """The whole training: the scheduler as tensors under "scheduler", and under "model" what backups hold."""
        return {"scheduler": self.lr_scheduler.state_dict(), "model": self.state.read()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, or a copy of it.

        Raises:
            ValueError: it is of another run or model. Then nothing was changed.
        """
        if not {"scheduler", "model"} <= state.keys():
            raise ValueError(f"state must be what state_dict() returned, got the keys {sorted(state)}.")
        self.state.check(state["model"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.state.load(clone(state["model"]), from_ram=True)
        self._reports.set_rates(self.scheduler.lr)

    def load_scheduler(self, state: Mapping[str, Any]) -> None:
        """Take over the state of the scheduler alone; losses on their way are forgotten, as in any such case.

        Raises:
            ValueError: it is of another run. Then nothing was changed.
        """
        self.scheduler.load_state_dict(state)
        self._reports.set_rates(self.scheduler.lr)

    def share_with(self, other: Adapter) -> None:
        """Take the steps of another adapter too: of another data set for the same model."""
        self._others.append(other)

    def close(self) -> None:
        """Finish: report, save what is due, tell listeners. Safe to call twice."""
        self.scheduler.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *error: object) -> None:
        self.scheduler.__exit__(*error)

    def _count(self, ticket: Ticket) -> int:
        return len(self._sharing.part(ticket.indices))

    def _ends_epoch(self, ticket: Ticket) -> bool:
        done = ticket.step + 1
        return done % self.scheduler.steps_per_epoch == 0 or done == self.scheduler.total_steps

    def _between(self) -> None:
        """Do what is due between two steps; a loader calls it whenever it asks for a batch."""
        # In a loop that takes its own steps, the losses were not reported yet.
        self._reports.tell()
        if self._stepper.ask_between_steps():
            self._sharing.between_steps(self.scheduler, self._reports.num_on_their_way)
        self._reports.set_next_rates()

    def _before_iter(self) -> None:
        self.flush()
        self._sharing.before_iteration()
        self._between()
        if self.scheduler.global_step % self.scheduler.steps_per_epoch == 0:
            self.state.resume_generators()

    def _before_turn(self) -> None:
        # In mid-epoch the state was taken after the loader had set itself up, else before.
        self.state.resume_generators()
