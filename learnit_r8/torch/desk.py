"""The desk: which batches a loader has, and which of them a loss belongs to.

A `DataLoader` asks for batches ahead of the training, by as many as its workers hold; it hands them out in the order
it asked, so a loss belongs to the oldest batch that is out. The one thing that breaks this is a batch that is handed
out and not reported, and the loader's own count of what it handed out shows it.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..ticket import Ticket

FRAMES = 6
"""How far up the stack a loader is looked for; wrappers of batch samplers add some."""


class Desk:
    """The batches of a scheduler that are out with loaders; one for each scheduler, see `of`.

    Args:
        r8: Draws them.

    Attributes:
        r8: The scheduler.
        out: The batches that are out by their number, in the order they were drawn.
        turn: The iteration that is being drawn from; None before the first.
        before_iter: Called before a loader sets itself up to begin an iteration.
        before_turn: Called before the first batch of an iteration is drawn.
        between_steps: Called whenever a loader asks for a batch, which it does between two steps of the training.
    """

    def __init__(self, r8: R8Scheduler) -> None:
        self.r8 = r8
        self.out: OrderedDict[int, Ticket] = OrderedDict()
        self.turn: Turn | None = None
        self._begun: deque[Ticket] = deque()
        self.before_iter: Callable[[], None] = _nothing
        self.before_turn: Callable[[], None] = _nothing
        self.between_steps: Callable[[], None] = r8.between_steps

    @classmethod
    def of(cls, r8: R8Scheduler) -> Desk:
        """The desk of a scheduler.

        Raises:
            TypeError: it is none.
        """
        if not (hasattr(r8, "draw_ahead") and hasattr(r8, "report")):
            raise TypeError(f"r8 must be an R8Scheduler, got {r8!r}.")
        desk = _desks.get(r8)
        if desk is None:
            desk = _desks[r8] = cls(r8)
        return desk

    def open_turn(self, turn: Turn) -> None:
        """Begin an iteration: what was not trained on in the one before comes first."""
        self.before_turn()
        if self.turn is not None and self.turn.is_finished:
            self._finish_epoch(self.turn.epoch)
        self.hand_back()
        self.turn = turn

    def hand_back(self) -> None:
        """Give the scheduler back what is out, to be drawn first; what an interruption left half reported too."""
        lost = [ticket for ticket in self._begun if ticket.batch.is_out]
        self._begun.clear()
        for ticket in reversed([*lost, *self.out.values()]):
            if ticket.epoch < 0:
                self.r8.give_up(ticket)
            else:
                self.r8.hand_back(ticket)
        self.out.clear()

    def _finish_epoch(self, epoch: int) -> None:
        """Count what the loop left unreported as refused, for one run through a loader to be one epoch."""
        r8 = self.r8
        for ticket in self.out.values():
            r8.discard(ticket)
        self.out.clear()
        while r8.current_epoch == epoch and (ticket_left := r8.draw_ahead()) is not None:
            r8.discard(ticket_left)

    def find(self, number: int | None = None, *, ahead: int = 0) -> Ticket:
        """The batch that a loss belongs to.

        Args:
            number: The batch's number, where the loader tells it; None for the oldest.
            ahead: Batches that something between loader and training fetches in advance.

        Raises:
            RuntimeError: no batch is out, or none of that number; or it cannot be told which batch it is.
        """
        if number is None:
            turn = self.turn
            if turn is None or turn.num_delivered != turn.num_taken + 1 or turn.is_out_of_order:
                self._skip_to_last(ahead)
            number = next(iter(self.out), -1)
        if number not in self.out:
            given = "none out" if number == -1 else f"ticket {number!r}"
            raise RuntimeError(
                f"a loss must be of a batch that was handed out and not reported yet, got {given}; out are "
                f"{list(self.out)[:8]}."
            )
        return self.out[number]

    def take(self, ticket: Ticket) -> None:
        """Note that a batch is no longer out with the loader; nothing happens if it never was."""
        if self.out.get(ticket.draw) is not ticket:
            return
        begun = self._begun
        while begun and not begun[0].batch.is_out:
            begun.popleft()
        # First in the one, then out of the other: an interruption between them loses nothing.
        begun.append(ticket)
        del self.out[ticket.draw]
        if self.turn is not None:
            self.turn.num_taken += 1

    def skip(self, *, ahead: int = 0) -> None:
        """Give up the batch in hand: it comes once more at the end of the epoch."""
        ticket = self.find(ahead=ahead)
        self.take(ticket)
        self.r8.give_up(ticket, on_purpose=True)

    def _skip_to_last(self, ahead: int) -> None:
        """Give up batches that were handed out before the last one and not reported."""
        turn = self.turn
        delivered = None if turn is None else turn.num_delivered
        if turn is None or delivered is None:
            return
        if turn.is_out_of_order:
            raise RuntimeError(
                "ticket must be given with the loss where a loader has in_order=False, got None; "
                "iterate over loader(..., numbered=True), which gives (ticket, batch)."
            )
        missed = delivered - turn.num_taken - 1
        if missed < 0:
            raise RuntimeError(
                f"a loss was reported with {delivered} batches handed out and as many reported; report each batch once."
            )
        missed -= ahead
        if missed > 0 and not turn.num_taken:
            raise RuntimeError(
                f"the first loss must come before the next batch is fetched, got {missed + 1 + ahead} batches handed "
                "out. If something fetches ahead of the training (accelerate, Lightning), say so with ahead=1; a batch "
                "that you leave out is to be passed over with skip()."
            )
        for _ in range(min(missed, len(self.out) - 1)):
            turn.num_taken += 1
            self.r8.give_up(self.out.popitem(last=False)[1])


def _nothing() -> None:
    """What is done before an iteration where there is no adapter."""


_desks: weakref.WeakKeyDictionary[R8Scheduler, Desk] = weakref.WeakKeyDictionary()


class Turn:
    """One iteration over the batches of an epoch, or over what is left of it.

    Args:
        desk: Where the batches are kept.
        hand_out: Makes what the loader gets of a ticket.

    Attributes:
        num_taken: Batches reported or given up.
        epoch: The epoch, 0-based.
        length: Batches of it.
        is_out_of_order: Whether the loader hands batches out as they come from its workers.
    """

    def __init__(self, desk: Desk, hand_out: Callable[[Ticket, Any], Any]) -> None:
        self.num_taken = 0
        self.epoch, self.length = -1, 0
        self._num_asked = self._num_drawn = self._num_ahead = 0
        self._is_exhausted = False
        self._desk = desk
        self._hand_out = hand_out
        self.is_out_of_order = False
        self._loader: Any = None
        self._end = 0
        self._pace = desk.r8.pace
        self._dataset: Any = None
        self._has_begun = False

    def __iter__(self) -> Turn:
        return self

    def __next__(self) -> Any:
        if not self._has_begun:
            self._begin()
        desk = self._desk
        self._num_asked += 1
        if desk.turn is not self:
            raise RuntimeError(
                "a batch was asked for by an iteration that another one has replaced; iterate over a loader once at a "
                "time."
            )
        desk.between_steps()
        pace = self._pace
        is_over = pace.step + pace.num_out >= self._end and not desk.r8.search.is_on
        ticket = None if is_over else desk.r8.draw_ahead()
        if ticket is None:
            self._is_exhausted = True
            raise StopIteration
        self._is_exhausted = False
        self._num_drawn += 1
        desk.out[ticket.draw] = ticket
        return self._hand_out(ticket, self._dataset)

    def _begin(self) -> None:
        self._has_begun = True
        loader = _loader_above()
        if loader is not None:
            _check(loader)
            self._loader, self._dataset = weakref.ref(loader), loader._dataset
            self._num_ahead = loader._num_workers * (getattr(loader, "_prefetch_factor", None) or 0)
            self.is_out_of_order = not getattr(loader, "_in_order", True) and loader._num_workers > 1
        desk, r8 = self._desk, self._desk.r8
        desk.open_turn(self)
        self.epoch, self.length = r8.current_epoch, num_left(r8)
        self._end = (self.epoch + 1) * r8.steps_per_epoch
        if r8.pace.is_finished and not r8.is_stopped:
            r8.announcer.warn_once(
                "no batches left",
                f"the budget is spent after {r8.global_step} steps: R8BatchSampler gives no more batches.",
            )

    @property
    def is_finished(self) -> bool:
        """Whether the loader handed out everything: it asks once with each batch, and ahead at the beginning."""
        asked = self._num_asked if self._num_ahead else self._num_asked - 1
        return self._is_exhausted and asked >= self._num_drawn + self._num_ahead

    @property
    def num_delivered(self) -> int | None:
        """Batches that the loader handed out; None if no loader of torch's is there to ask."""
        loader = None if self._loader is None else self._loader()
        return getattr(loader, "_num_yielded", None)


def _loader_above() -> Any:
    """The iterator of a DataLoader that is asking; None if it is something else."""
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
    """Raise ValueError if a loader makes batches of our batches."""
    sampler = loader._index_sampler
    if type(sampler) is BatchSampler:
        raise ValueError(
            f"sampler must be left out and R8BatchSampler given as batch_sampler to the DataLoader, got {sampler!r}; "
            "or "
            "give it as sampler with batch_size=None, for data sets that take an array as index."
        )


def num_left(r8: R8Scheduler) -> int:
    """Batches left in the epoch, or in the budget."""
    left = r8.steps_per_epoch - r8.global_step % r8.steps_per_epoch
    return left if r8.total_steps is None else max(0, min(left, r8.total_steps - r8.global_step))
