"""step_stream: the loop of R8Scheduler as a stream of one event a step, for any framework."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..bridge.host import check_scheduler
from ..bridge.prefetch import Prefetch
from ..engine.signals import running
from ..triggers import Elapsed
from .stages import Event

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome, Ticket
    from ..table.labels.predictions import Predictions


NOTHING_HANDED_OVER = (
    "step_stream() does not know what train_step trains: it can restore the model only if R8Scheduler has a "
    "state_callback and a load_callback, or step_stream() a state=, such as (model, optimizer)."
)

NO_STATE: Any = object()
"""Stands for no ``state``, as None may be one."""


def step_stream(
    r8: R8Scheduler, train_step: Callable[..., Any], *, state: Any = NO_STATE, part_size: int | None = None
) -> Iterator[Event]:
    """Draw, train, report: a batch for every event that is asked for, to the end of the scheduler's budget.

    An event has "step" (steps finished, from 1), "epoch" (0-based), "loss" (mean of the batch), "lr", "batch_size",
    "samples" (trained on in this stream) and "refused". Steps of a search for a learning rate make no event.

    Args:
        r8: The scheduler.
        train_step: ``(indices, lr)``, trains on these samples and returns the loss as `R8Scheduler.report` takes it;
            ``(indices, lr, weights)`` under a policy that weights. With ``state`` that comes first, and a pair of the
            new state and the loss is returned. What `predictions_of` returned may follow the losses of samples, so
            that `SampleTable.suspects` judges labels.
        state: What training changes, for backups, checkpoints and restores: a pytree, which a refused loss replaces
            with an older one in the next call; or objects with ``load_state_dict``, such as ``(model, optimizer)``,
            which are restored in place. Events then have it as "state". Without it, the scheduler needs a
            ``state_callback`` and a ``load_callback`` to restore anything.
        part_size: As in `R8Scheduler.report`, for losses of parts (gradient accumulation).

    Raises:
        TypeError: ``train_step`` is not callable, ``r8`` is not a scheduler, or there is no model in ``state``; later,
            ``train_step`` does not return a pair where there is a state.

    >>> from learnit_r8 import R8Scheduler
    >>> r8 = R8Scheduler(100, batch_size=50, num_epochs=1)
    >>> [(event["step"], event["loss"]) for event in step_stream(r8, lambda indices, lr: 1.0)]
    [(1, 1.0), (2, 1.0)]
    """
    if not callable(train_step):
        raise TypeError(f"train_step must be callable, got {train_step!r}.")
    check_scheduler("r8", r8)
    return _events(r8, _Stepper(r8, train_step, part_size, state))


class _Stepper:
    """Trains on a batch and reports its loss.

    Attributes:
        state: The user's state; `NO_STATE` if it stays with the user.
        has_state: Whether it does not; the scheduler then keeps it.
    """

    def __init__(self, r8: R8Scheduler, train_step: Callable[..., Any], part_size: int | None, state: Any) -> None:
        from ..bridge.driven_state import DrivenState

        self.state = state
        self._r8, self._train_step, self._part_size = r8, train_step, part_size
        self._prefetch = Prefetch.of(r8)
        self._driven = DrivenState(self)
        self.has_state = state is not NO_STATE
        if not self.has_state:
            return
        if not self._driven.has_model:
            raise TypeError(
                f"state must hold what training changes (arrays, or a model with a state_dict), got {state!r}."
            )
        r8.host.adopt(self._driven.callbacks())

    def step(self, ticket: Ticket) -> tuple[float, Outcome]:
        """The mean loss of a batch, and what the scheduler says of it."""
        from ..table.labels.predictions import Predictions
        from ..table.losses import read_loss

        weights = self._prefetch.weights_of(ticket)
        arguments = (ticket.indices, ticket.lr, *(() if weights is None else (weights,)))
        result = self._train_step(self.state, *arguments) if self.has_state else self._train_step(*arguments)
        predictions = None
        if isinstance(result, tuple) and len(result) > 1 and isinstance(result[-1], Predictions):
            result, predictions = result[0] if len(result) == 2 else result[:-1], result[-1]
        if not self.has_state:
            reading = read_loss(result, len(ticket.indices), self._part_size)
            return reading.mean, self._report(reading.means, predictions)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"train_step must return (state, loss) where step_stream() has a state, got {result!r}.")
        reading = read_loss(result[1], len(ticket.indices), self._part_size)
        report = functools.partial(self._report, predictions=predictions)
        return reading.mean, self._driven.judge(self._r8, result[0], reading.means, report)

    def _report(self, means: Any, predictions: Predictions | None) -> Outcome:
        outcome = self._prefetch.report(means, part_size=self._part_size, predictions=predictions)
        if not (outcome or self.has_state or outcome.rolled_back_to is not None):
            self._r8.host.say_once("state of step_stream", NOTHING_HANDED_OVER)
        return outcome


def _events(r8: R8Scheduler, stepper: _Stepper) -> Iterator[Event]:
    origin = time.monotonic()
    last = (r8.global_step, 0, 0.0)
    with contextlib.closing(Prefetch.of(r8).tickets(running(_events))) as tickets:
        for ticket in tickets:
            loss, outcome = stepper.step(ticket)
            if ticket.epoch < 0:
                continue
            now = (r8.global_step, last[1] + len(ticket.indices), time.monotonic() - origin)
            event = Event(
                step=now[0], epoch=ticket.epoch, loss=loss, lr=ticket.lr, batch_size=len(ticket.indices),
                samples=now[1], refused=not outcome, **({"state": stepper.state} if stepper.has_state else {}),
            )  # fmt: skip
            event.elapsed = Elapsed(*now, *last)
            last = now
            yield event
