"""R8BatchSampler: the batches that R8Scheduler draws, for any `DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.utils.data

from ..._validation import whole_number
from ...bridge.prefetch import Prefetch
from ...sampling.ticket import refuse_weights
from ..distributed.ranks import are_there
from ..distributed.single_process import ALONE
from .loader import takes_arrays
from .sampler_iterator import SamplerIterator, find_batch

if TYPE_CHECKING:
    from ...sampling.ticket import Outcome, Ticket
    from ...scheduler import R8Scheduler
    from ..distributed.together import Sharing


class R8BatchSampler(torch.utils.data.Sampler[Any]):
    """Goes as ``batch_sampler`` into a `torch.utils.data.DataLoader`; each iteration is one epoch.

    The loader may have workers and run ahead as far as it likes. After a ``break`` the next iteration goes on in the
    same epoch with the batch that was in hand. Batches that are handed out and not reported come once more at the end
    of the epoch.

    Args:
        r8: The scheduler.
        as_list: Whether a batch is a list of ints; else it is an int64 array, which ``dataset.__getitems__`` can index
            with at once. By default an array for data sets with a ``__getitems__`` of their own, and a list for others.
        numbered: Whether a batch is ``(ticket, indices)``; `loader` unpacks it.
        ahead: Batches that something between loader and training fetches in advance, as accelerate and Lightning do.
        sharing: Selects this process's part of a batch.

    Raises:
        TypeError: ``r8`` is not an R8Scheduler.
        ValueError: ``ahead`` is negative, or the scheduler takes batches of the user's own.

    >>> from learnit_r8 import R8Scheduler
    >>> sampler = R8BatchSampler(R8Scheduler(6, batch_size=4, num_epochs=1))
    >>> loader = torch.utils.data.DataLoader(range(6), batch_sampler=sampler)
    >>> [bool(sampler.report(batch / 6)) for batch in loader]
    [True, True]
    """

    finds_its_place = True
    """Whether a resumed run needs no batches skipped."""

    def __init__(
        self,
        r8: R8Scheduler,
        *,
        as_list: bool | None = None,
        numbered: bool = False,
        ahead: int = 0,
        sharing: Sharing = ALONE,
    ) -> None:
        self.batches = Prefetch.of(r8)
        if r8.feed is not None:
            raise ValueError("r8 must be an R8Scheduler with num_samples, which draws the batches, got one without.")
        self.ahead = whole_number("ahead", ahead, least=0)
        self._as_list = as_list
        self._numbered = numbered
        self._sharing = sharing

    @property
    def r8(self) -> R8Scheduler:
        """The scheduler."""
        return self.batches.r8

    def __iter__(self) -> Iterator[Any]:
        self.batches.trainer.before_iteration()
        self._warn_of_ranks()
        return SamplerIterator(self.batches, self._hand_out, ahead=self.ahead, may_wait=self._numbered)

    def __len__(self) -> int:
        """Batches of a whole epoch, as trainers assume; an iteration that goes on in mid-epoch gives what is left."""
        return self.r8.steps_per_epoch

    def _warn_of_ranks(self) -> None:
        if self._sharing is ALONE and are_there() and torch.distributed.get_world_size() > 1:
            count = torch.distributed.get_world_size()
            self.r8.host.say_once(
                "whole batches",
                f"torch.distributed has {count} processes, and R8BatchSampler gives each of them whole batches: all "
                "train on the same samples. Use attach(), which shares the batches among them.",
            )

    def _hand_out(self, ticket: Ticket, dataset: Any) -> Any:
        indices: Any = self._sharing.part(ticket.indices)
        if self._as_list is None:
            self._as_list = not takes_arrays(dataset)
        if self._as_list:
            indices = indices.tolist()
        return (ticket.draw, indices) if self._numbered else indices

    def report(self, loss: Any, *, ticket: int | None = None, part_size: int | None = None) -> Outcome:
        """Report the loss of a batch, for loops without an adapter; see `R8Scheduler.report`.

        Args:
            loss: As the scheduler takes it.
            ticket: The batch's number from a numbered loader; by default the oldest batch handed out.
            part_size: Samples in a part of the loss.

        Raises:
            RuntimeError: it is not clear which batch it is; or the policy weights samples.
        """
        found = find_batch(self.batches, ticket, ahead=self.ahead)
        refuse_weights(self.r8.policy, found)
        outcome = self.r8.report(self.r8.host.begin(found, is_late=True), loss, part_size=part_size)
        self.batches.take(found)
        return outcome

    def skip(self) -> None:
        """Pass over the batch in hand; it comes once more at the end of the epoch."""
        find_batch(self.batches, ahead=self.ahead)
        self.batches.give_up_oldest(on_purpose=True)
