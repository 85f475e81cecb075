"""Loggers: their base with a bounded queue and a thread that empties it; TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import atexit
import importlib
import math
import os
import re
import time
import traceback
from collections import deque
from typing import Any

from .. import events
from .._validation import import_needed
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

    @property
    def num_lost(self) -> int:
        """Events that were not written, including one that is still being written."""
        return self.num_dropped + self._num_failed

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
        # Until it is written.
        self._num_failed += len(arguments)
        try:
            call(*arguments)
            self._num_failed -= len(arguments)
        except Exception as error:
            self.error = error
            self._trace = self._trace or traceback.format_exc()

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
            numbers = {"r8/epoch_loss": event.loss, "r8/samples_per_second": event.samples_per_second}
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


LONGEST_VALUE = 500
LEVELS = {"incident": "WARN", "cause": "WARN", "diverged": "ERROR"}
"""The level of an alert of Weights & Biases, by its kind."""
STATES = {"finished": "FINISHED", "finished early": "FINISHED", "diverged": "FAILED"}
"""The state of a run of MLflow, by the kind of its last alert."""


class _Service(Logger):
    """A logger that sends numbers and alerts, once a run has begun."""

    def write(self, event: events.Event) -> None:
        """Send an event."""
        if isinstance(event, events.RunStarted):
            self._begin(event)
        step, numbers = numbers_of(event)
        if numbers:
            self._send(step, numbers)
        if (alert := alert_of(event)) is not None:
            self._say(event.step, *alert)

    def _begin(self, event: events.RunStarted) -> None:
        raise NotImplementedError

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        raise NotImplementedError

    def _say(self, step: int, kind: str, text: str) -> None:
        raise NotImplementedError


class TensorBoard(_Service):
    """Write numbers, settings and incidents for TensorBoard.

    A resumed run hides what an earlier session wrote after the step it goes on from.

    Args:
        folder: The log folder of this run.
        **options: Of `Logger`.

    Raises:
        ImportError: neither tensorboardX nor torch with tensorboard is installed.
    """

    def __init__(self, folder: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        try:
            self._make = importlib.import_module("tensorboardX").SummaryWriter
        except ImportError:
            how = "pip install tensorboardX"
            found = import_needed("torch.utils.tensorboard", "loggers.TensorBoard needs tensorboardX", how)
            self._make = found.SummaryWriter
        self._folder = os.fspath(folder)
        self._writer: Any = None

    def _open(self, **options: Any) -> Any:
        self._writer = self._writer or self._make(self._folder, **options)
        return self._writer

    def _begin(self, event: events.RunStarted) -> None:
        self.finish()
        rows = "\n".join(f"    {name}: {value}" for name, value in event.settings.items())
        self._open(purge_step=event.step + 1 if event.step else None).add_text("r8/settings", rows, event.step)

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        # What is logged after the end of a run is written, too.
        writer = self._open()
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def _say(self, step: int, kind: str, text: str) -> None:
        self._open().add_text(f"r8/{kind}", text, step)

    def finish(self) -> None:
        """Close the files."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class Wandb(_Service):
    """Send numbers, settings and incidents to Weights & Biases.

    Each record has the step as ``r8/step``, so that a resumed run, whose steps go back, loses nothing.

    Args:
        run: Your own run, which stays open; by default the training starts and finishes one.
        alerts: Whether to send an alert when a loss is refused or the training diverges.
        most_queued, every_rank: Of `Logger`.
        **options: For ``wandb.init``, such as ``project``.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(
        self, *, run: Any = None, alerts: bool = True, most_queued: int = 10_000, every_rank: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(most_queued=most_queued, every_rank=every_rank)
        self._library = import_needed("wandb", "loggers.Wandb needs wandb", "pip install wandb")
        self._run = self._given = run
        self._options, self._alerts = options, alerts

    def _begin(self, event: events.RunStarted) -> None:
        if self._run is None:
            self._run = self._library.init(**{"name": event.name or None, **self._options})
        self._run.define_metric("r8/step")
        self._run.define_metric("*", step_metric="r8/step")
        self._run.config.update({f"r8/{name}": value for name, value in event.settings.items()})

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        if self._run is not None:
            self._run.log({**numbers, "r8/step": step})

    def _say(self, step: int, kind: str, text: str) -> None:
        if kind in LEVELS and self._alerts and self._run is not None:
            self._run.alert(title=kind, text=text, level=LEVELS[kind])

    def finish(self) -> None:
        """Finish the run, unless it was given."""
        run, self._run = self._run, self._given
        if run is not None and self._given is None:
            run.finish()


class MLflow(_Service):
    """Send numbers, settings and the state of the run to MLflow.

    Args:
        experiment: Name of the experiment; it is made if there is none.
        tracking_uri: The server or data base ("sqlite:///mlflow.db"); by default that of MLflow's own settings.
        run_id: Your own run to log to, which stays open; by default the training starts one.
        **options: Of `Logger`.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(
        self, experiment: str = "learnit_r8", *, tracking_uri: str | None = None, run_id: str | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        needed = "loggers.MLflow needs mlflow", "pip install mlflow"
        self._make = import_needed("mlflow.tracking", *needed).MlflowClient
        self._entities = import_needed("mlflow.entities", *needed)
        self._experiment, self._uri = experiment, tracking_uri
        self._run_id = self._given = run_id
        self._client: Any = None
        self._state = "KILLED"

    def write(self, event: events.Event) -> None:
        """Send an event, if a run has begun."""
        if isinstance(event, events.RunStarted) or (self._run_id is not None and self._client is not None):
            super().write(event)

    def _begin(self, event: events.RunStarted) -> None:
        self._state = "KILLED"
        self._client = self._client or self._make(tracking_uri=self._uri)
        if self._run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            number = found.experiment_id if found else self._client.create_experiment(self._experiment)
            self._run_id = self._client.create_run(number, run_name=event.name or None).info.run_id
        if not event.step:
            # MLflow refuses a parameter that changes, as the process of a resumed run does.
            settings = event.settings.items()
            params = [self._entities.Param(_key(f"r8.{name}"), value[:LONGEST_VALUE]) for name, value in settings]
            self._client.log_batch(self._run_id, params=params)

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_key(name), value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _say(self, step: int, kind: str, text: str) -> None:
        self._client.set_tag(self._run_id, f"r8.{kind}", text)
        self._state = STATES.get(kind, self._state)

    def finish(self) -> None:
        """End the run, unless it was given."""
        run_id, self._run_id = self._run_id, self._given
        if run_id is not None and self._given is None and self._client is not None:
            self._client.set_terminated(run_id, self._state)


def _key(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)
