"""The losses that a user's own loop reports: which batch each is of, and its way to the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...engine.feed.samples import note_rows, tell_ids
from ...guard.verdict import GOOD
from ...sampling.ticket import Outcome, Ticket, new_tuple
from ..flight.second_run import with_second

if TYPE_CHECKING:
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
        self._feed: Any = scheduler.host.feed
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
            note_rows(self._feed.run, found, losses[0])
        outcome = self.tell(found, values, count, None, None)
        if outcome.verdict is not GOOD and not outcome:
            self._look(*losses)
        return outcome

    def take(self, ids: Any = None) -> Ticket | None:
        """The batch that a loss belongs to; None after the end."""
        feed = self._feed
        ticket: Ticket | None = feed.open
        if ticket is None:
            if self._has_loader and not (feed.has_asked or feed.is_iterating or self._r8.is_over):
                self._host.say_once("no batches", NOT_OF_BATCHES.format(self._r8.global_step))
            ticket = feed.take_step()
        if ids is not None and ticket is not None:
            ticket = tell_ids(feed.run, ticket, ids)
        feed.open = None
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
            if outcome.verdict is GOOD and outcome.lr == 1.0:
                return new_tuple(Outcome, (GOOD, self._host.rates.own, None))
            return Outcome(outcome.verdict, self._r8.lr, outcome.rolled_back_to)
        pipeline.record(
            ticket, values if count else values.reshape(1), count=count or 1, part_size=1 if count else None
        )
        outcome = pipeline.tell(norm, skipped)
        if self._sets_rates:
            return outcome
        return Outcome(outcome.verdict, self._r8.lr, outcome.rolled_back_to)

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
