"""step_stream: the loop of R8Scheduler as a stream of one event a step, for any framework."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..triggers import Elapsed
from .drawn import check_scheduler
from .event import Event

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..ticket import Ticket


def step_stream(r8: R8Scheduler, train_step: Callable[..., Any], *, part_size: int | None = None) -> Iterator[Event]:
    """Draw, train, report: a batch for every event that is asked for, to the end of the scheduler's budget.

    An event has "step" (steps finished, from 1), "epoch" (0-based), "loss" (mean of the batch), "lr", "batch_size",
    "samples" (trained on in this stream) and "refused". Steps of a search for a learning rate make no event.

    Args:
        r8: The scheduler.
        train_step: ``(indices, lr)``, trains on these samples and returns the loss as `R8Scheduler.report` takes it;
            ``(indices, lr, weights)`` under a policy that weights. A refused loss is answered by restoring the
            model, which needs the scheduler's ``load_callback``.
        part_size: As in `R8Scheduler.report`, for losses of parts (gradient accumulation).

    Raises:
        TypeError: ``train_step`` is not callable, or ``r8`` is not a scheduler.

    >>> from learnit_r8 import R8Scheduler
    >>> r8 = R8Scheduler(100, batch_size=50, num_epochs=1)
    >>> [(event["step"], event["loss"]) for event in step_stream(r8, lambda indices, lr: 1.0)]
    [(1, 1.0), (2, 1.0)]
    """
    if not callable(train_step):
        raise TypeError(f"train_step must be callable, got {train_step!r}.")
    check_scheduler("r8", r8)
    return _events(r8, train_step, part_size)


def _events(r8: R8Scheduler, train_step: Callable[..., Any], part_size: int | None) -> Iterator[Event]:
    from ..losses import read_loss

    origin = time.monotonic()
    last = (r8.global_step, 0, 0.0)
    while (ticket := r8.draw_if_any()) is not None:
        try:
            loss = train_step(*_arguments(ticket))
            reading = read_loss(loss, len(ticket.indices), part_size)
            outcome = r8.report(ticket, reading.means, part_size=part_size)
        except BaseException:
            r8.hand_back(ticket)
            raise
        if ticket.epoch < 0:
            continue
        now = (r8.global_step, last[1] + len(ticket.indices), time.monotonic() - origin)
        event = Event(
            step=now[0],
            epoch=ticket.epoch,
            loss=reading.mean,
            lr=ticket.lr,
            batch_size=len(ticket.indices),
            samples=now[1],
            refused=not outcome,
        )
        event.elapsed = Elapsed(*now, *last)
        last = now
        yield event


def _arguments(ticket: Ticket) -> tuple[Any, ...]:
    return (ticket.indices, ticket.lr) if ticket.weights is None else (ticket.indices, ticket.lr, ticket.weights)
