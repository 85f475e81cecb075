"""The rest of an epoch drawn at once, for adapters whose loaders work ahead of the training.

The loaders then know every batch there is, need no lock and never wait for the training thread; and which batches
there are does not depend on how far ahead they happened to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scheduler import R8Scheduler
    from .ticket import Outcome, Ticket


class EpochAhead:
    """The batches from here to the end of the epoch, trained on and reported in order.

    Args:
        r8: Draws them.

    Raises:
        TypeError: ``r8`` is not an R8Scheduler.
        ValueError: it searches for a learning rate, which cannot be done with batches drawn before.

    Attributes:
        r8: The scheduler.
        tickets: The batches drawn, trained on or not.
        position: How many of them are done.
    """

    def __init__(self, r8: R8Scheduler) -> None:
        if not (hasattr(r8, "draw_ahead") and hasattr(r8, "report")):
            raise TypeError(f"r8 must be an R8Scheduler, got {r8!r}.")
        if r8.phase == "searching":
            raise ValueError(
                f"auto_find_lr must be False where batches are drawn ahead, got True in {r8!r}; give initial_lr."
            )
        self.r8 = r8
        self.tickets: list[Ticket] = []
        self.position = 0
        self._current: Ticket | None = None

    def __len__(self) -> int:
        """Batches drawn; where none are, those that would be: what is left of the epoch, or of the budget."""
        return len(self.tickets) or self._num_left()

    def _num_left(self) -> int:
        r8 = self.r8
        left = r8.steps_per_epoch - r8.global_step % r8.steps_per_epoch
        return left if r8.total_steps is None else min(left, r8.total_steps - r8.global_step)

    def draw(self) -> list[Ticket]:
        """Draw the rest of the epoch; batches that were drawn and not reported come first.

        Raises:
            RuntimeError: the budget is spent.
        """
        self.hand_back()
        self.r8.rescue.skip_steady_if_over()
        for _ in range(self._num_left()):
            ticket = self.r8.draw_ahead()
            if ticket is None:
                break
            self.tickets.append(ticket)
        if not self.tickets:
            raise RuntimeError(
                f"the budget must not be spent where training goes on, got {self.r8.global_step} steps reported; "
                "build the scheduler with a larger one."
            )
        return self.tickets

    def hand_back(self) -> None:
        """Give what was not reported back to the scheduler, to be drawn first."""
        for ticket in reversed(self.tickets[self.position :]):
            self.r8.hand_back(ticket)
        self.tickets, self.position, self._current = [], 0, None

    def begin(self) -> Ticket:
        """The next batch, as its training begins."""
        self._current = self.r8.begin(self.tickets[self.position])
        return self._current

    def report(self, loss: Any) -> Outcome:
        """Report the loss of the batch begun last; see `Engine.report`.

        Raises:
            RuntimeError: none is begun.
        """
        if self._current is None:
            raise RuntimeError(
                f"report() was called at step {self.r8.global_step} with no batch begun; begin one first."
            )
        ticket, self._current = self._current, None
        # A refused loss may raise; the batch is reported all the same.
        self.position += 1
        return self.r8.report(ticket, loss)

    def give_up(self) -> None:
        """Pass over the batch begun last, if it was not reported: it comes once more at the end of the epoch."""
        if self._current is not None:
            self.position += 1
            self.r8.give_up(self._current)
            self._current = None
