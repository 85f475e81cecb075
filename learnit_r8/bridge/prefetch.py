"""Prefetch: the batches of a scheduler that are drawn before they are trained on.

A loader that works ahead knows its batches this way, needs no lock and never waits for the training thread; and which
batches there are does not depend on how far ahead it happens to be.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ..engine.run import Member, Trainer
from .host import check_scheduler, num_left

if TYPE_CHECKING:
    from ..engine.signals import Scope
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome, Ticket


class Prefetch(Member):
    """Holds the batches of a scheduler that are drawn and not reported; each scheduler has one, see `of`.

    Args:
        r8: Draws them.

    Attributes:
        r8: The scheduler.
        waiting: Batches drawn and not trained on yet by their number, in the order they were drawn.
        num_taken: Batches trained on or given up since `open`.
        epoch: Batches that `draw_epoch` has drawn, trained on or not.
        current: The batch in hand: that of the last `begin` or `draw_now`; None once it is reported or given up.
        reader: The iteration that draws; its ``in_hand()`` is the batch of the next loss. None before the first.
        trainer: Trains on them.
    """

    def __init__(self, r8: R8Scheduler) -> None:
        self.r8 = r8
        self.waiting: OrderedDict[int, Ticket] = OrderedDict()
        self.num_taken = 0
        self.epoch: list[Ticket] = []
        self.current: Ticket | None = None
        self.reader: Any = None
        self.trainer = Trainer(r8.host.between_steps)
        self._begun: deque[Ticket] = deque()

    @classmethod
    def of(cls, r8: R8Scheduler) -> Prefetch:
        """The prefetch of a scheduler.

        Raises:
            TypeError: ``r8`` is not an R8Scheduler.
        """
        check_scheduler("r8", r8)
        member = r8.host.member
        if not isinstance(member, Prefetch):
            member = cls(r8)
            r8.host.join(member)
        return member

    @classmethod
    def of_epochs(cls, r8: R8Scheduler) -> Prefetch:
        """The prefetch of a scheduler, for `draw_epoch`.

        Raises:
            TypeError: ``r8`` is not an R8Scheduler.
            ValueError: it searches for a learning rate, which cannot be done with batches drawn before.
        """
        prefetch = cls.of(r8)
        if r8.phase == "searching":
            raise ValueError(
                f"auto_find_lr must be False if batches are drawn ahead, got True in {r8!r}; give initial_lr."
            )
        return prefetch

    def join(self, trainer: Trainer) -> None:
        """Let an adapter train on the batches; it takes the place of the one that joined before."""
        self.trainer = trainer

    def settle(self) -> None:
        """Let the trainer report the losses that it holds back."""
        self.trainer.settle()

    def forget(self) -> None:
        """Let the trainer drop them; losses of batches that are out are passed over when they come."""
        self.trainer.forget()

    def in_hand(self) -> Ticket | None:
        """The batch of the next loss, where a loop reports its losses to the scheduler itself; else None.

        Raises:
            RuntimeError: it is not clear which batch it is.
        """
        is_plain = type(self.trainer) is Trainer and self.reader is not None
        return self.reader.in_hand() if is_plain and self.waiting else None

    def open(self, reader: Any) -> None:
        """Begin an iteration; batches of the one before that were not trained on come first."""
        self.hand_back()
        self.reader, self.num_taken = reader, 0

    def draw(self, *, is_fetched: bool = False) -> Ticket | None:
        """Draw one batch ahead; None if there is none left.

        Args:
            is_fetched: Whether others that were drawn before are trained on first, so that it must not be a probe.
        """
        experiment = self.r8.controller.experiment
        if experiment.is_open and experiment.asks_probe and not is_fetched:
            self.trainer.before_probe()
        ticket = self.r8.host.draw_ahead(is_fetched=is_fetched)
        if ticket is not None:
            self.waiting[ticket.draw] = ticket
        return ticket

    def draw_probe(self, num_before: int) -> Ticket | None:
        """Draw a probe, which comes before the batches that wait; None if there is none left.

        Args:
            num_before: Batches that wait and were handed out already.
        """
        ticket = self.draw()
        if ticket is not None:
            for number in list(self.waiting)[num_before:-1]:
                self.waiting.move_to_end(number)
        return ticket

    def draw_epoch(self) -> list[Ticket]:
        """Draw the rest of the epoch; batches that were drawn and not reported come first.

        Raises:
            RuntimeError: the budget is spent.
        """
        self.hand_back()
        self.r8.controller.experiment.can_probe = False
        self.epoch = self.r8.host.draw_epoch()
        self.waiting.update((ticket.draw, ticket) for ticket in self.epoch)
        if not self.epoch:
            raise RuntimeError(
                f"the budget must not be spent where training goes on, got {self.r8.global_step} steps reported; "
                "build the scheduler with a larger one."
            )
        return self.epoch

    @property
    def epoch_length(self) -> int:
        """Batches that `draw_epoch` has drawn; before that, those that it would draw."""
        return len(self.epoch) or num_left(self.r8)

    def weights_of(self, ticket: Ticket) -> Any:
        """float32[B]: ones where a policy weights other batches, so that a loop meets one form; else None."""
        if ticket.weights is None and self.r8.policy.weighs:
            import numpy as np

            return np.ones(len(ticket.indices), np.float32)
        return ticket.weights

    def draw_now(self) -> Ticket | None:
        """Draw the batch to train on next; None if there is none left."""
        controller = self.r8.controller
        controller.experiment.can_probe = True
        self.current = self.r8.draw_if_any()
        if self.current is not None:
            controller.note_start()
            self._note_begun(self.current)
        return self.current

    def tickets(self, scope: Scope | None = None) -> Generator[Ticket, None, None]:
        """The batches to train on, each reported before the next is asked for, to the end of the budget.

        A loop closes it: a batch in hand after an error or an interruption is then the next one drawn.

        Args:
            scope: The part of the program in which signals are handled; None for that which is set.
        """
        ticket = None
        try:
            while True:
                if scope is not None:
                    # Anew for each: while nobody asks for one, the scheduler may have been used in another loop.
                    self.r8.requests.stay_within(scope)
                ticket = None
                ticket = self.draw_now()
                if ticket is None:
                    return
                yield ticket
        finally:
            # None while it is being drawn; of another loop is what is in hand where this one has reported its own.
            if ticket is None or self.current is ticket:
                self.hand_back()
            self.r8.requests.leave()

    def begin(self) -> Ticket:
        """The oldest batch that waits, as its training begins."""
        oldest = next(iter(self.waiting.values()))
        self.take(oldest)
        self.current = self.r8.host.begin(oldest)
        return self.current

    def take(self, ticket: Ticket) -> None:
        """Note that a batch no longer waits; nothing happens if it never did."""
        if self.waiting.get(ticket.draw) is not ticket:
            return
        # First in the one, then out of the other: an interruption between them loses nothing.
        self._note_begun(ticket)
        del self.waiting[ticket.draw]
        self.num_taken += 1

    def _note_begun(self, ticket: Ticket) -> None:
        begun = self._begun
        while begun and not begun[0].is_out:
            begun.popleft()
        begun.append(ticket)

    def report(self, loss: Any, *, part_size: int | None = None, predictions: Any = None) -> Outcome:
        """Report the loss of the batch in hand; see `R8Scheduler.report`.

        Raises:
            RuntimeError: there is none.
        """
        ticket = self.current
        if ticket is None:
            raise RuntimeError(
                f"report() was called at step {self.r8.global_step} with no batch begun; begin one first."
            )
        try:
            if hasattr(predictions, "num_classes"):
                # A compiled function returns it as an array.
                predictions = predictions._replace(num_classes=int(predictions.num_classes))
            return self.r8.report(ticket, loss, part_size=part_size, predictions=predictions)
        finally:
            # A refused loss may raise, and its batch is reported all the same; a loss of a wrong shape is not.
            if not ticket.is_out:
                self.current = None

    def give_up(self) -> None:
        """Pass over the batch in hand, if it was not reported: it comes once more at the end of the epoch."""
        ticket, self.current = self.current, None
        if ticket is not None:
            self.r8.give_up(ticket)

    def give_up_oldest(self, *, on_purpose: bool = False) -> None:
        """Pass over the oldest batch that waits: it comes once more at the end of the epoch."""
        oldest = next(iter(self.waiting.values()))
        self.take(oldest)
        self.r8.give_up(oldest, on_purpose=on_purpose)

    def hand_back(self) -> None:
        """Give the batches that are not reported back to the scheduler, to be drawn first."""
        begun = [ticket for ticket in self._begun if ticket.is_out]
        self._begun.clear()
        for ticket in reversed([*begun, *self.waiting.values()]):
            if ticket.epoch < 0:
                self.r8.give_up(ticket)
            else:
                self.r8.host.hand_back(ticket)
        self.waiting.clear()
        self.epoch, self.current = [], None

    def leave_out(self) -> None:
        """Give up the batches that wait, as their epoch is over: probes have taken their places."""
        for ticket in self.waiting.values():
            self.r8.host.leave_out(ticket)
        self.waiting.clear()

    def discard_epoch(self, epoch: int) -> None:
        """Count the batches left in an epoch as refused, so that one run through a loader is one epoch."""
        host, waiting = self.r8.host, list(self.waiting.values())
        self.waiting.clear()
        while self.r8.current_epoch == epoch or waiting:
            left = waiting.pop(0) if waiting else host.draw_ahead()
            if left is None:
                break
            host.discard(left, is_missed=True)
