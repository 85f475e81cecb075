"""A logger for MLflow."""

from __future__ import annotations

import re
import time
from typing import Any

from .. import events
from .background import Logger, alert_of, import_needed, numbers_of

LONGEST_VALUE = 500


class MLflow(Logger):
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
        self._experiment, self._uri, self._given = experiment, tracking_uri, run_id
        self._client: Any = None
        self._run_id = run_id
        self._state = "KILLED"

    def write(self, event: events.Event) -> None:
        """Send an event."""
        if isinstance(event, events.RunStarted):
            self._begin(event)
        if self._run_id is None or self._client is None:
            return
        step, numbers = numbers_of(event)
        if numbers:
            now, metric = int(time.time() * 1000), self._entities.Metric
            metrics = [metric(_key(name), value, now, step) for name, value in numbers.items()]
            self._client.log_batch(self._run_id, metrics=metrics)
        alert = alert_of(event)
        if alert is not None:
            self._client.set_tag(self._run_id, f"r8.{alert[0]}", alert[1])
            self._state = {"finished": "FINISHED", "finished early": "FINISHED", "diverged": "FAILED"}.get(
                alert[0], self._state
            )

    def _begin(self, event: events.RunStarted) -> None:
        self._state = "KILLED"
        self._client = self._client or self._make(tracking_uri=self._uri)
        if self._run_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            number = found.experiment_id if found else self._client.create_experiment(self._experiment)
            self._run_id = self._client.create_run(number, run_name=event.name or None).info.run_id
        param = self._entities.Param
        params = [param(_key(f"r8.{name}"), value[:LONGEST_VALUE]) for name, value in event.settings.items()]
        if not event.step:
            # MLflow refuses a parameter that changes, as the process of a resumed run does.
            self._client.log_batch(self._run_id, params=params)

    def finish(self) -> None:
        """End the run, unless it was given."""
        run_id, self._run_id = self._run_id, self._given
        if run_id is not None and self._given is None and self._client is not None:
            self._client.set_terminated(run_id, self._state)


def _key(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)
