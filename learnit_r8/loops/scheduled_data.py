"""Data-aware batches in a loop: a data set that R8Scheduler draws, and the callback that reports back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bridge.driven_state import DrivenState
from ..bridge.host import check_scheduler
from ..bridge.prefetch import Prefetch
from ..bridge.rows import check_rows, leaves, take_rows
from ..engine.signals import running
from ..guard.verdict import Verdict
from ..triggers import Elapsed
from .log_entries import Logs
from .run import LoopState, loop

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

NO_MODEL = (
    "the state of the loop holds no model, so only a load_callback can put one back after a refused loss: make the "
    "model and its optimizer the state, as in loop((model, optimizer), ...), or pass state_callback and load_callback "
    "to R8Scheduler."
)


class Drawn(NamedTuple):
    """A batch that a scheduler drew; a JAX pytree, so that jitted steps may take it.

    Attributes:
        data: The samples: a nest like the data set, [B, ...] each.
        lr: Learning rate to train on it with.
        indices: int64[B], their positions.
        weights: float32[B], factors of the samples' losses; None under a policy that does not weight.
    """

    data: Any
    lr: float
    indices: Any
    weights: Any


class scheduled:
    """A data set of the batches that a scheduler draws, to the end of its budget; `report_to` tells it the losses.

    Args:
        r8: The scheduler.
        data: [N, ...] arrays or tensors: one, or a nest of tuples, lists and dictionaries of them; or ``(indices)``, a
            function that returns the samples.

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

    def __init__(self, r8: R8Scheduler, data: Any) -> None:
        check_scheduler("r8", r8)
        self._r8, self._data = r8, data
        if callable(data):
            return
        for name, column in leaves("data", data) or [("data", data)]:
            if not hasattr(column, "__getitem__") or not getattr(column, "shape", ()):
                raise TypeError(f"data must be arrays, or a function of indices, got {type(column).__name__}.")
            check_rows(name, column, r8.table.num_samples)

    @property
    def resumed_at(self) -> Elapsed:
        """Turns, samples and seconds that a resumed run has had, before the first one in this process; else none."""
        pace, source = self._r8.pace, self._r8.host.source
        return Elapsed() if pace.is_running else Elapsed(pace.turns, source.samples_in(pace.turns), pace.seconds)

    def __iter__(self) -> Iterator[Drawn]:
        prefetch = Prefetch.of(self._r8)
        with contextlib.closing(prefetch.tickets()) as tickets:
            for ticket in tickets:
                yield Drawn(self._take(ticket.indices), ticket.lr, ticket.indices, prefetch.weights_of(ticket))
                if prefetch.current is not None:
                    raise RuntimeError(
                        f"the batch of step {ticket.step} must be reported before the next one is drawn; "
                        "add report_to(r8) to the loop's callbacks."
                    )

    def _take(self, indices: Any) -> Any:
        return self._data(indices) if callable(self._data) else take_rows(self._data, indices, _rows)


def _rows(column: Any, indices: Any) -> Any:
    # An index of pandas is of labels, which need not be positions.
    return column.iloc[indices].to_numpy() if hasattr(column, "iloc") else column[indices]


class report_to:
    """The callback that tells a scheduler the loss of the batch of this step; it stands after the training step.

    The scheduler keeps the state of the loop: backups in RAM, and checkpoints where it has a ``checkpoint_dir``; what
    its own callbacks keep goes with it. A refused loss leaves the state as it was before the step, or puts an older one
    back: objects with ``load_state_dict`` (torch modules and optimizers, or a tuple of them) and NNX modules in place,
    anything else by replacing the loop's state, so that the next step gets the restored one. A model that is not in the
    state is not kept. It logs "scheduler.lr" and "scheduler.refused".

    Args:
        r8: The scheduler that drew the batch.
        key: Which entry of the logs: the batch's mean loss, or one loss for each sample.
        part_size: As in `R8Scheduler.report`.
        predictions: Which entry of the logs has what `predictions_of` returned, to judge labels; the losses are then
            those of samples. A step adds it with `Logs.add_output`.

    Raises:
        TypeError: ``r8`` is not a scheduler.
        KeyError: later, this step has logged no such entry.
        RuntimeError: later, the batch is not of this scheduler, or was reported before.
    """

    def __init__(
        self, r8: R8Scheduler, key: str = "loss", *, part_size: int | None = None, predictions: str | None = None
    ) -> None:
        self._r8, self._key, self._part_size, self._predictions = r8, key, part_size, predictions
        self._prefetch = Prefetch.of(r8)
        self._place: LoopState | None = None

    def on_start(self, loop_state: LoopState) -> None:
        """Let the scheduler keep the state of this loop, if there is a model in it."""
        if self._place is not loop_state:
            self._place, self._driven = loop_state, DrivenState(loop_state)
            self._r8.requests.stay_within(running(loop))
            if self._driven.has_model:
                self._r8.host.adopt(self._driven.callbacks())
                self._driven.keep()

    def on_step(self, loop_state: LoopState) -> Logs:
        """Report the loss of this step."""
        ticket = self._prefetch.current
        if ticket is None:
            raise RuntimeError(
                f"report_to() must be called once for each batch of scheduled(), got no open one at step "
                f"{loop_state.elapsed.steps}."
            )
        self.on_start(loop_state)
        loss, after = loop_state.logs.find(self._key), loop_state.state
        said = None if self._predictions is None else loop_state.logs.find(self._predictions)
        loop_state.state = loop_state.state_before
        report = functools.partial(self._prefetch.report, part_size=self._part_size, predictions=said)
        outcome = self._driven.judge(self._r8, after, loss, report)
        self._r8.host.leave_epoch()
        # Objects that the next step changes in place.
        self._driven.keep()
        if outcome.verdict is Verdict.NOT_FINITE and not self._driven.has_model:
            self._r8.host.say_once("state of the loop", NO_MODEL)
        logs = Logs()
        logs.add_entry("scheduler", "lr", ticket.lr)
        return logs.add_entry("scheduler", "refused", not outcome)

    __call__ = on_step
