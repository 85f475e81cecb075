"""A logger for Weights & Biases."""

from __future__ import annotations

from typing import Any

from .. import events
from .background import Logger, alert_of, import_needed, numbers_of

LEVELS = {"incident": "WARN", "cause": "WARN", "diverged": "ERROR"}


class Wandb(Logger):
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
        self._given, self._options, self._alerts = run, options, alerts
        self._run = run

    def write(self, event: events.Event) -> None:
        """Send an event."""
        if isinstance(event, events.RunStarted):
            self._begin(event)
        step, numbers = numbers_of(event)
        if numbers and self._run is not None:
            self._run.log({**numbers, "r8/step": step})
        alert = alert_of(event)
        if alert is not None and alert[0] in LEVELS and self._alerts and hasattr(self._run, "alert"):
            self._run.alert(title=alert[0], text=alert[1], level=self._level(alert[0]))

    def _level(self, kind: str) -> Any:
        levels = getattr(self._library, "AlertLevel", None)
        return LEVELS[kind] if levels is None else getattr(levels, LEVELS[kind])

    def _begin(self, event: events.RunStarted) -> None:
        if self._run is None:
            options = {"name": event.name or None, **self._options}
            self._run = self._library.init(**{name: value for name, value in options.items() if value is not None})
        if hasattr(self._run, "define_metric"):
            self._run.define_metric("r8/step")
            self._run.define_metric("*", step_metric="r8/step")
        config: Any = getattr(self._run, "config", None)
        if hasattr(config, "update"):
            config.update({f"r8/{name}": value for name, value in event.settings.items()})

    def finish(self) -> None:
        """Finish the run, unless it was given."""
        run, self._run = self._run, self._given
        if run is not None and self._given is None:
            run.finish()
