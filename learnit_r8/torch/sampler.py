"""R8BatchSampler: the batches that R8Scheduler draws, for any `DataLoader`."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch.utils.data
from torch.utils.data import BatchSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from .._validation import whole_number
from ..bridge.host import num_left
from ..bridge.prefetch import Prefetch
from ..sources.ticket import Ticket, refuse_weights
from .distributed.ranks import are_there
from .prepared import takes_arrays
from .readback import ALONE

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome
    from .distributed.together import Sharing


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
        indices: Any = ticket.indices if self._sharing.size == 1 else self._sharing.part(ticket.indices)
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


FRAMES = 6
"""How far up the stack a loader is looked for; wrappers of batch samplers add some."""

NOTHING_REPORTED = (
    "an epoch of {} batches ended with no loss reported, so the batches are chosen without knowing the losses and no "
    "rate is set: call adapter.step(adapter.loss(losses)) or adapter.report(losses) for each batch, or report(losses) "
    "of an R8BatchSampler. Where a trainer owns the loop, use learnit_r8.lightning or learnit_r8.transformers."
)


class SamplerIterator:
    """One iteration over the batches of an epoch, or over what is left of it.

    Args:
        batches: Holds the batches.
        hand_out: ``(ticket, dataset)``, returns the batch as the loader gets it.
        ahead: Batches that something between loader and training fetches in advance.
        may_wait: Whether losses may come at any time later, as they tell the batch that they are of.

    Attributes:
        epoch: The epoch, 0-based.
        length: Batches of it.
        end: The place of the first batch after it.
        is_out_of_order: Whether the loader hands batches out as they come from its workers.
    """

    def __init__(
        self,
        batches: Prefetch,
        hand_out: Callable[[Ticket, Any], Any],
        *,
        ahead: int = 0,
        may_wait: bool = False,
    ) -> None:
        self.epoch, self.length = -1, 0
        self.is_out_of_order = False
        self._num_asked = self._num_drawn = self._num_ahead = self._num_probes = 0
        self._is_exhausted = False
        self._batches = batches
        self._hand_out = hand_out
        self._ahead, self._may_wait = ahead, may_wait
        self._loader: Any = None
        self.end = 0
        self._dataset: Any = None
        self._has_begun = False

    def __iter__(self) -> SamplerIterator:
        return self

    def __next__(self) -> Any:
        if not self._has_begun:
            self._begin()
        batches = self._batches
        self._num_asked += 1
        if batches.reader is not self:
            raise RuntimeError(
                "a batch was asked for by an iteration that another one has replaced; iterate over a loader once at a "
                "time."
            )
        r8 = batches.r8
        is_at_end = r8.pace.next_place >= self.end
        if is_at_end and not self._num_ahead and r8.is_over:
            # A probe may follow, where the last losses were unusual.
            batches.trainer.settle()
            is_at_end = False
        if not is_at_end or r8.requests.is_pending:
            batches.trainer.between_steps()
        ticket = None if is_at_end else batches.draw(is_fetched=self._num_ahead > 0)
        if ticket is None:
            self._is_exhausted = True
            self._warn_if_silent()
            if not self._num_ahead:
                batches.trainer.settle()
            batches.r8.host.leave_epoch()
            raise StopIteration
        self._is_exhausted = False
        self._num_drawn += 1
        if self._num_drawn == self.length:
            # The last one: a trainer that stops at len(loader) asks no more, and there may be one epoch only.
            self._warn_if_silent()
        return self._hand_out(ticket, self._dataset)

    def _begin(self) -> None:
        self._has_begun = True
        loader = _loader_above()
        if loader is not None:
            _check(loader)
            self._loader, self._dataset = weakref.ref(loader), loader._dataset
            self._num_ahead = loader._num_workers * (getattr(loader, "_prefetch_factor", None) or 0)
        # With workers the loader itself must be able to fetch a probe; see `WithProbes`.
        self._batches.r8.controller.experiment.can_probe = not (self._ahead or self._num_ahead)
        if loader is not None:
            self.is_out_of_order = not getattr(loader, "_in_order", True) and loader._num_workers > 1
        batches, r8 = self._batches, self._batches.r8
        batches.trainer.before_first_batch()
        before = batches.reader
        if before is not None and (before.is_silent() or before.is_finished):
            batches.discard_epoch(before.epoch)
        batches.open(self)
        self.epoch, self.length = r8.current_epoch, num_left(r8)
        self.end = (self.epoch + 1) * r8.steps_per_epoch
        if r8.is_over and not r8.pace.is_stopped:
            r8.host.say_once(
                "no batches left",
                f"the budget is spent after {r8.global_step} steps: R8BatchSampler gives no more batches.",
            )

    def draw_probe(self) -> Any:
        """Draw a probe, for a loader that fetches it itself; None if there is none left."""
        batches, delivered = self._batches, self.num_delivered
        ticket = batches.draw_probe(0 if delivered is None else max(0, delivered - batches.num_taken))
        if ticket is None:
            return None
        self._num_probes += 1
        return self._hand_out(ticket, self._dataset)

    @property
    def can_probe(self) -> bool:
        """Whether a loader may fetch a probe itself: nothing between it and the training works ahead."""
        return not self._ahead

    @property
    def is_finished(self) -> bool:
        """Whether the loader handed out every batch: it asks once with each one, and ahead at the beginning."""
        asked = self._num_asked if self._num_ahead else self._num_asked - 1
        return self._is_exhausted and asked >= self._num_drawn + self._num_ahead

    def is_silent(self) -> bool:
        """Whether the loader handed out an epoch of several batches, and no loss of any of them came; says so once.

        A trainer that stops at ``len(loader)`` never finishes an iteration: the next one would give the same batches.
        """
        batches = self._batches
        num_handed_out = min(self._num_drawn, self._num_asked - self._num_ahead)
        if batches.num_taken or not 1 < self.length <= num_handed_out:
            return False
        batches.r8.host.say_once("nothing reported", NOTHING_REPORTED.format(self.length))
        return True

    def _warn_if_silent(self) -> None:
        """Say so once if batches were trained on and no loss of any of them came, as the last ones are handed out."""
        num_asked_before = self._num_asked - self._num_ahead - 1
        # One batch may be fetched in advance by the trainer, and the one before it is in hand.
        if not (self._batches.num_taken or self._may_wait) and num_asked_before - self._ahead > 2:
            self._batches.r8.host.say_once("nothing reported", NOTHING_REPORTED.format(self.length))

    def in_hand(self) -> Ticket:
        """The batch that the next loss belongs to; see `find_batch`."""
        return find_batch(self._batches, ahead=self._ahead)

    @property
    def num_delivered(self) -> int | None:
        """Batches that the loader handed out; None where no `DataLoader` iterates."""
        loader = None if self._loader is None else self._loader()
        delivered = getattr(loader, "_num_yielded", None)
        return None if delivered is None else delivered + self._num_probes


def find_batch(batches: Prefetch, number: int | Ticket | None = None, *, ahead: int = 0) -> Ticket:
    """The batch that a loss belongs to.

    Args:
        batches: Holds it.
        number: The batch's number, where the loader tells it; or the batch itself; None for the oldest.
        ahead: Batches that something between loader and training fetches in advance.

    Raises:
        RuntimeError: no batch waits, or none of that number; or it is not clear which batch it is.
    """
    if isinstance(number, Ticket):
        return number
    waiting = batches.waiting
    if number is None:
        iteration: SamplerIterator | None = batches.reader
        if iteration is not None:
            delivered = iteration.num_delivered
            if delivered is not None and (delivered != batches.num_taken + 1 or iteration.is_out_of_order):
                _skip_to_last(batches, delivered, ahead, is_out_of_order=iteration.is_out_of_order)
        number = next(iter(waiting), -1)
    if number not in waiting:
        given = "none out" if number == -1 else f"ticket {number!r}"
        raise RuntimeError(
            f"a loss must be of a batch that was handed out and not reported yet, got {given}; out are "
            f"{list(waiting)[:8]}: it is of no batch of adapter.loader(). Batches come from the adapter's loader: for "
            "batch in adapter.loader(). Losses of a validation go to adapter.log(val_loss=...) alone."
        )
    return waiting[number]


def _skip_to_last(batches: Prefetch, delivered: int, ahead: int, *, is_out_of_order: bool) -> None:
    """Give up batches that were handed out before the last one and not reported."""
    if is_out_of_order:
        raise RuntimeError(
            "ticket must be given with the loss where a loader has in_order=False, got None; "
            "iterate over loader(..., numbered=True), which gives (ticket, batch)."
        )
    missed = delivered - batches.num_taken - 1
    if missed < 0:
        raise RuntimeError(
            f"a loss was reported with {delivered} batches handed out and as many reported; report each batch once."
        )
    missed -= ahead
    if missed > 0 and not batches.num_taken:
        raise RuntimeError(
            f"the first loss must come before the next batch is fetched, got {missed + 1 + ahead} batches handed "
            "out. If something fetches ahead of the training (accelerate, Lightning), say so with ahead=1; a batch "
            "that you leave out is to be passed over with skip()."
        )
    for _ in range(min(missed, len(batches.waiting) - 1)):
        batches.give_up_oldest()


def _loader_above() -> Any:
    """Find the DataLoader's iterator that asks for a batch; None if other code asks."""
    frame = sys._getframe(2)
    for _ in range(FRAMES):
        asking = frame.f_locals.get("self")
        if isinstance(asking, _BaseDataLoaderIter):
            return asking
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def _check(loader: Any) -> None:
    """Raise ValueError if a loader makes batches of batches, or leaves some out that would be taken for others."""
    sampler = loader._index_sampler
    if getattr(sampler, "skip_batches", 0) and getattr(sampler.batch_sampler, "finds_its_place", False):
        raise ValueError(
            "skip_first_batches() must be left out where R8Scheduler draws the batches, as the loader goes on where it "
            f"was by itself, got {sampler.skip_batches} batches to skip; iterate over the loader as it is."
        )
    if type(sampler) is BatchSampler:
        raise ValueError(
            f"sampler must be left out and R8BatchSampler given as batch_sampler to the DataLoader, got {sampler!r}; "
            "or "
            "give it as sampler with batch_size=None, for data sets that take an array as index."
        )
