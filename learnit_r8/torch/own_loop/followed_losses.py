"""The losses of batches that are the user's own: which batch they belong to, and what of them is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...guard.verdict import GOOD
from ...sampling.ticket import Outcome, Ticket
from ..flight.second_run import with_second

if TYPE_CHECKING:
    from ...engine.feed.feed import Feed
    from ..loss_pipeline import LossPipeline, Training

VALIDATED = (
    "the loss of step {} has no gradient, and is of another loader than that of attach(): it counts as a step of "
    "training. To validate, iterate over your loader itself, and call adapter.log(val_loss=...)."
)

NOT_OF_BATCHES = (
    "the loss of step {} is of no batch of adapter.batches(): epochs are not counted, no sample is known, and a "
    "resumed run does not find its place in the loader. Write adapter.batches() in place of the loader; for steps "
    "without one, attach None and iterate over adapter.steps()."
)


class FollowedLosses:
    """Takes the losses of a loop over batches that the scheduler did not draw.

    Args:
        training: The model, and all that belongs to its training.
        feed: Has the batch in hand.
        pipeline: Brings the losses to the scheduler.
        has_loader: Whether the user has a loader.
        look: Called with the losses of a refused batch.

    Attributes:
        is_other: Whether the batches are of another loader than that of `attach`.
    """

    def __init__(
        self, training: Training, feed: Feed, pipeline: LossPipeline, *, has_loader: bool, look: Callable[..., None]
    ) -> None:
        self._r8, self._sets_rates = training.scheduler, training.rates is not None
        self._feed, self._pipeline, self._has_loader, self._look = feed, pipeline, has_loader, look
        self.is_other = False
        # What is in main memory needs no way round.
        self._is_direct = training.sharing.size == 1 and not self._sets_rates

    @property
    def num_rows(self) -> int:
        """Rows of the batch in hand, with one sample each; 0 where its samples are not known."""
        chunk: Any = None if self._feed.source.open is None else self._feed.source.open.chunk
        members = None if chunk is None else chunk.members
        return 0 if members is None or members.counts is not None else members.num_rows

    def report(self, *losses: torch.Tensor, ids: Any = None) -> Outcome:
        """Report the loss of the batch in hand; see `Adapter.report`."""
        found = self.take(ids)
        if found is None:
            return Outcome(GOOD, self._r8.lr, None)
        values, count = values_of(losses, found)
        if self.is_other and not (torch.is_grad_enabled() or losses[0].requires_grad):
            self._r8.host.say_once("validated", VALIDATED.format(found.step))
        if not count and len(losses) == 1:
            self._feed.note_rows(found, losses[0])
        outcome = self.tell(found, values, count, None, None)
        if outcome.verdict is not GOOD and not outcome:
            self._look(*losses)
        return outcome

    def take(self, ids: Any = None) -> Ticket | None:
        """The batch that a loss belongs to; None after the end."""
        feed = self._feed
        ticket = feed.source.open
        if ticket is None:
            if self._has_loader and not (feed.has_asked or feed.source.iteration is not None or self._r8.is_over):
                self._r8.host.say_once("no batches", NOT_OF_BATCHES.format(self._r8.global_step))
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
        if self._is_direct and norm is None and skipped is None and values.is_cpu and pipeline.recorded is None:
            outcome = pipeline.tell_now(ticket, values.numpy() if count else float(values))
            return self.with_rate(outcome)
        self.record(ticket, values, count)
        return self.with_rate(pipeline.tell(norm, skipped))

    def record(self, ticket: Ticket, values: torch.Tensor, count: int, num_classes: int = 0) -> None:
        """Note the values of ``count`` samples, or with 0 of them the mean of a batch whose samples are not known."""
        self._pipeline.record(
            ticket, values if count else values.mean().reshape(1), count=count or 1, part_size=1 if count else None,
            num_classes=num_classes,
        )  # fmt: skip

    def with_rate(self, outcome: Outcome) -> Outcome:
        """An outcome with the rate that the optimizer has, where it is the user's."""
        return outcome if self._sets_rates else outcome._replace(lr=self._r8.lr)


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
