"""The base of all loggers: a bounded queue, and a thread that empties it."""

from __future__ import annotations

import atexit
import importlib
import math
import traceback
from collections import deque
from typing import Any

from .. import events
from ..events import launcher
from ..events.caller import warn
from ..events.event import describe
from ..events.threaded_listener import ThreadedListener

MOST_QUEUED = 10_000
"""Events that wait for a logger: forty minutes of steps, which are condensed to four a second."""

CLOSE_SECONDS = 5.0
"""Longest time that the end of a run waits for a logger."""

EVERY_SECONDS = 0.25
"""Time between two looks at the queue; steps come four times a second."""


class Logger(ThreadedListener):
    """A listener that passes events to `write` on its own thread.

    The training thread only appends to a queue; it never waits, except for `close` at the end of the run. Steps come as
    `StepsDone`, at most four a second. The thread starts with the first event after a start or a `close`, so one logger
    serves several runs, one after the other.

    Subclasses define `write`, and may define `finish`.

    Args:
        most_queued: Events that may wait; later ones are lost, and counted.
        every_rank: Whether to log on every rank; by default on the first one alone, as the launcher says.

    Raises:
        ValueError: ``most_queued`` is below 1.

    Attributes:
        num_events: Events heard so far.
        error: The newest error of `write` or `finish`; None without one.
    """

    wants_surveys = False

    def __init__(self, *, most_queued: int = MOST_QUEUED, every_rank: bool = False) -> None:
        if most_queued < 1:
            raise ValueError(f"most_queued must be at least 1, got {most_queued!r}.")
        super().__init__(f"r8-{type(self).__name__}", most_queued=most_queued, every_seconds=EVERY_SECONDS)
        self.num_events = self._num_failed = 0
        self.error: BaseException | None = None
        self._is_on = every_rank or not launcher.rank_of()
        self._trace, self._has_said = "", False
        self._num_in_hand, self._is_late = 0, False

    @property
    def num_lost(self) -> int:
        """Events that were not written, including one that is still being written when the time is up."""
        return self.num_dropped + self._num_failed + (self._num_in_hand if self._is_late else 0)

    def write(self, event: events.Event) -> None:
        """Write an event; on the thread of the logger."""
        raise NotImplementedError

    def finish(self) -> None:
        """End after the last event of a run; on the thread of the logger."""

    def __call__(self, event: events.Event) -> None:
        """Take in an event; on the training thread."""
        if not self._is_on:
            return
        super().__call__(event)
        self._say_error()
        if isinstance(event, events.RunEnded):
            self.close()

    def enqueue(self, event: events.Event) -> None:
        """See `ThreadedListener`; counts the event."""
        self.num_events += 1
        super().enqueue(event)

    def start_thread(self) -> None:
        """See `ThreadedListener`; the program writes what is queued before it ends."""
        super().start_thread()
        atexit.register(self.close)

    def handle(self, waiting: deque[events.Event], *, is_last: bool) -> None:
        """Write the events in the queue."""
        while waiting:
            self._guarded(self.write, waiting.popleft())
        if is_last:
            self._guarded(self.finish)

    def _guarded(self, call: Any, *arguments: Any) -> None:
        try:
            self._num_in_hand += len(arguments)
            call(*arguments)
        except Exception as error:
            self.error = error
            self._num_failed += len(arguments)
            self._trace = self._trace or traceback.format_exc()
        finally:
            self._num_in_hand -= len(arguments)

    def _say_error(self) -> None:
        """Name the error, if there is one, the first time."""
        if self._trace and not self._has_said:
            self._has_said = True
            warn(f"logger {type(self).__name__} could not write, and goes on:\n{self._trace}")

    def close(self) -> None:
        """Write what is queued and end the thread; waits at most five seconds. Safe to call twice."""
        self._condenser.flush()
        if self._thread is None:
            return
        atexit.unregister(self.close)
        has_ended = self.end_thread(CLOSE_SECONDS)
        self._is_late = not has_ended
        self._say_error()
        if self.num_lost:
            late = "" if has_ended else f", and was not done after {CLOSE_SECONDS:g} s"
            warn(f"logger {type(self).__name__} has lost {self.num_lost:,} of {self.num_events:,} events{late}")


def numbers_of(event: events.Event) -> tuple[int, dict[str, float]]:
    """The step of an event, and its numbers by name; those of the scheduler begin with "r8/".

    >>> numbers_of(events.MetricsLogged(step=7, seconds=1.0, at_step=5, metrics={"accuracy": 0.5}))
    (5, {'accuracy': 0.5})
    """
    numbers: dict[str, float] = {}
    step = event.step
    match event:
        case events.StepsDone():
            numbers = {
                "r8/loss": event.loss, "r8/lowest_loss": event.lowest, "r8/highest_loss": event.highest,
                "r8/expected_loss": event.expected_loss, "r8/lr": event.lr, "r8/suspicion": event.suspicion,
                "r8/epoch": float(event.epoch),
            }  # fmt: skip
        case events.EpochDone():
            each = event.samples / event.epoch_seconds if event.epoch_seconds > 0 else math.nan
            numbers = {"r8/epoch_loss": event.loss, "r8/samples_per_second": each}
        case events.MetricsLogged():
            step, numbers = event.at_step, dict(event.named)
        case events.LrFound():
            numbers = {"r8/lr_found": event.lr}
        case events.GroupsMeasured():
            numbers = {f"r8/group/{name}": mean for name, mean in zip(event.names, event.means, strict=True)}
    return step, {name: value for name, value in numbers.items() if math.isfinite(value)}


ALERTS: dict[type[events.Event], str] = {
    events.BatchRefused: "incident", events.CauseFound: "cause", events.DamageFound: "incident",
    events.RolledBack: "restored", events.SamplesQuarantined: "quarantine", events.IncidentEnded: "recovered",
    events.GaveUp: "diverged",
}  # fmt: skip
"""The events worth an alert, and the kind of each; the end of a run is one, too."""


def alert_of(event: events.Event) -> tuple[str, str] | None:
    """Kind and text of an event worth an alert, in the words of every view; None for the others."""
    kind, said = event.how if isinstance(event, events.RunEnded) else ALERTS.get(type(event)), describe(event)
    if kind is None or said is None:
        return None
    # The sentence on a cause begins with the step at which it began.
    return kind, event.text if isinstance(event, events.CauseFound) else f"step {event.step}: {said.text}"


def import_needed(module: str, package: str, what: str) -> Any:
    """Import a module.

    Raises:
        ImportError: it is not installed; the message says which package has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is required for {what}: pip install {package} ({error}).") from error


def summary_writer(what: str) -> Any:
    """The class that writes for TensorBoard: that of tensorboardX, else that of torch.

    Raises:
        ImportError: neither is installed.
    """
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError:
        return import_needed("torch.utils.tensorboard", "tensorboardX", what).SummaryWriter
