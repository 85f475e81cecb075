"""Data-aware batches in a loop: a data set that R8Scheduler draws, and the callback that reports back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from .logs import Logs
from .state import LoopState

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..ticket import Ticket

_open: WeakKeyDictionary[Any, Ticket] = WeakKeyDictionary()
"""The batch of each scheduler that a loop has and has not reported yet."""


class Drawn(NamedTuple):
    """A batch that a scheduler drew; a JAX pytree, so that jitted steps may take it.

    Attributes:
        data: The samples: what the data are, [B, ...] each.
        lr: Learning rate to train on it with.
        indices: int64[B], which samples they are.
        weights: float32[B], what to multiply the samples' losses by; None under a policy that does not weight.
    """

    data: Any
    lr: float
    indices: Any
    weights: Any


class Scheduled:
    """A data set of `Drawn` batches, to the end of the scheduler's budget; see `scheduled`.

    Args:
        r8: Draws.
        take: ``(indices)``, returns the samples.
    """

    def __init__(self, r8: R8Scheduler, take: Callable[[Any], Any]) -> None:
        self._r8, self._take = r8, take

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, for `train_loop`."""
        return self._r8.steps_per_epoch

    def __iter__(self) -> Iterator[Drawn]:
        r8 = self._r8
        ticket = None
        try:
            while (ticket := r8.draw_if_any()) is not None:
                _open[r8] = ticket
                yield Drawn(self._take(ticket.indices), ticket.lr, ticket.indices, ticket.weights)
                if _open.get(r8) is ticket:
                    raise RuntimeError(
                        f"the batch of step {ticket.step} must be reported before the next one is drawn; "
                        "add report_to(r8) to the loop's callbacks."
                    )
        finally:
            # After an interruption or an error the batch is the next one drawn.
            if ticket is not None:
                _open.pop(r8, None)
                r8.hand_back(ticket)


def scheduled(r8: R8Scheduler, data: Any) -> Scheduled:
    """Make a data set of the batches that a scheduler draws; `report_to` tells it the losses.

    Args:
        r8: The scheduler.
        data: [N, ...] arrays or tensors: one, a tuple, list or dictionary of them; or ``(indices)``, a function that
            returns the samples.

    Returns:
        An iterable of `Drawn` batches.

    Raises:
        TypeError: ``r8`` is not a scheduler, or the data are none of these.
        ValueError: the data have another number of samples than the scheduler.

    >>> import numpy as np
    >>> from learnit_r8 import R8Scheduler
    >>> from learnit_r8.loops import loop, logs
    >>> r8 = R8Scheduler(100, batch_size=10, num_epochs=1)
    >>> step = lambda state, batch: (logs().add_metric("loss", 1.0), state + batch.data.sum())
    >>> int(loop(0, scheduled(r8, np.arange(100)), callbacks=[step, report_to(r8)])[0])
    4950
    """
    _check(r8)
    if callable(data):
        return Scheduled(r8, data)
    for part in _parts(data):
        if not hasattr(part, "__getitem__") or not hasattr(part, "shape") or not part.shape:
            raise TypeError(f"data must be arrays, or a function of indices, got {type(part).__name__}.")
        if part.shape[0] != r8.table.num_samples:
            raise ValueError(f"data must have the scheduler's {r8.table.num_samples} samples, got {part.shape[0]}.")
    return Scheduled(r8, lambda indices: _rows(data, indices))


def _check(r8: Any) -> None:
    if not (hasattr(r8, "draw_if_any") and hasattr(r8, "report")):
        raise TypeError(f"r8 must be an R8Scheduler, got {r8!r}.")


def _parts(data: Any) -> list[Any]:
    if isinstance(data, Mapping):
        return list(data.values())
    return list(data) if isinstance(data, (tuple, list)) else [data]


def _rows(data: Any, indices: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: part[indices] for name, part in data.items()}
    if isinstance(data, (tuple, list)):
        return tuple(part[indices] for part in data)
    return data[indices]


def report_to(r8: R8Scheduler, key: str = "loss", *, part_size: int | None = None) -> Callable[[LoopState], Logs]:
    """Make the callback that tells a scheduler the loss of the batch of this step; it stands after the training step.

    A refused loss puts the state back that was there before the step. (A state that is changed in place needs the
    scheduler's ``load_callback``.) It logs "scheduler.lr" and "scheduler.refused".

    Args:
        r8: The scheduler that drew the batch.
        key: Which entry of the logs: the batch's mean loss, or one loss for each sample.
        part_size: As in `R8Scheduler.report`.

    Raises:
        TypeError: ``r8`` is not a scheduler.
        KeyError: later, this step has logged no such entry.
        RuntimeError: later, the batch is not of this scheduler, or was reported before.
    """
    _check(r8)

    def report(loop_state: LoopState) -> Logs:
        ticket = _open.get(r8)
        if ticket is None:
            raise RuntimeError(
                f"report_to() must be called once for each batch of scheduled(), got no open one at step "
                f"{loop_state.elapsed.steps}."
            )
        outcome = r8.report(ticket, loop_state.logs.find(key), part_size=part_size)
        del _open[r8]
        if not outcome:
            loop_state.state = loop_state.state_before
        logs = Logs()
        logs.add_entry("scheduler", "lr", ticket.lr)
        return logs.add_entry("scheduler", "refused", not outcome)

    return report
