"""Loggers for TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import os
import re
import time
from typing import Any

from .. import events
from .background import Logger, alert_of, import_needed, numbers_of, summary_writer

LONGEST_VALUE = 500
LEVELS = {"incident": "WARN", "cause": "WARN", "diverged": "ERROR"}
"""The level of an alert of Weights & Biases, by its kind."""
STATES = {"finished": "FINISHED", "finished early": "FINISHED", "diverged": "FAILED"}
"""The state of a run of MLflow, by the kind of its last alert."""


class _Service(Logger):
    """A logger that sends numbers and alerts, once a run has begun."""

    def write(self, event: events.Event) -> None:
        """Send an event."""
        if self._must_begin(event):
            self._begin(event)
        step, numbers = numbers_of(event)
        if numbers:
            self._send(step, numbers)
        if (alert := alert_of(event)) is not None:
            self._say(event.step, *alert)

    def _must_begin(self, event: events.Event) -> bool:
        return isinstance(event, events.RunStarted)

    def _begin(self, event: Any) -> None:
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
        self._folder, self._make = os.fspath(folder), summary_writer("loggers.TensorBoard")
        self._writer: Any = None

    def _must_begin(self, event: events.Event) -> bool:
        return self._writer is None or super()._must_begin(event)

    def _begin(self, event: Any) -> None:
        self.finish()
        self._writer = self._make(self._folder, purge_step=event.step + 1 if event.step else None)
        if isinstance(event, events.RunStarted):
            rows = "\n".join(f"    {name}: {value}" for name, value in event.settings.items())
            self._writer.add_text("r8/settings", rows, event.step)

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def _say(self, step: int, kind: str, text: str) -> None:
        self._writer.add_text(f"r8/{kind}", text, step)

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
        TypeError: ``library`` is given, which named trackio.
    """

    def __init__(
        self, *, run: Any = None, alerts: bool = True, most_queued: int = 10_000, every_rank: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(most_queued=most_queued, every_rank=every_rank)
        if "library" in options:
            raise TypeError(
                f"library is gone, got {options['library']!r}: this logger is for wandb; docs/loggers.md has one of "
                "your own for trackio."
            )
        self._library = import_needed("wandb", "wandb", "loggers.Wandb")
        self._run = self._given = run
        self._options, self._alerts = options, alerts

    def _begin(self, event: Any) -> None:
        if self._run is None:
            options = {"name": event.name or None, **self._options}
            self._run = self._library.init(**{name: value for name, value in options.items() if value is not None})
        if hasattr(self._run, "define_metric"):
            self._run.define_metric("r8/step")
            self._run.define_metric("*", step_metric="r8/step")
        config: Any = getattr(self._run, "config", None)
        if hasattr(config, "update"):
            config.update({f"r8/{name}": value for name, value in event.settings.items()})

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        if self._run is not None:
            self._run.log({**numbers, "r8/step": step})

    def _say(self, step: int, kind: str, text: str) -> None:
        if kind in LEVELS and self._alerts and hasattr(self._run, "alert"):
            level = getattr(getattr(self._library, "AlertLevel", None), LEVELS[kind], LEVELS[kind])
            self._run.alert(title=kind, text=text, level=level)

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
        self._make = import_needed("mlflow.tracking", "mlflow", "loggers.MLflow").MlflowClient
        self._entities = import_needed("mlflow.entities", "mlflow", "loggers.MLflow")
        self._experiment, self._uri = experiment, tracking_uri
        self._run_id = self._given = run_id
        self._client: Any = None
        self._state = "KILLED"

    def write(self, event: events.Event) -> None:
        """Send an event, if a run has begun."""
        if self._must_begin(event) or (self._run_id is not None and self._client is not None):
            super().write(event)

    def _begin(self, event: Any) -> None:
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
