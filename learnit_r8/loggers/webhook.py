"""A logger that calls a web hook where somebody should look."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from .. import events
from .background import Logger, alert_of

KINDS = ("incident", "quarantine", "recovered", "diverged", "finished", "stopped")
USUAL = ("incident", "diverged", "finished", "stopped")
TIMEOUT_SECONDS = 10.0
TRIES = 3
PAUSE_SECONDS = 2.0


class Webhook(Logger):
    """Post JSON to an address when something happens: ``{"text": ..., "kind": ..., "run": ..., "step": ...}``.

    Chat services show the field ``text``. An incident is told once, however many losses it refuses.

    Args:
        url: The address, http or https.
        kinds: What to tell of, of "incident", "quarantine", "recovered", "diverged", "finished" and "stopped".
        headers: More headers, such as an authorisation.
        **options: Of `Logger`.

    Raises:
        ValueError: ``url`` or one of ``kinds`` is not such.
    """

    def __init__(
        self, url: str, *, kinds: Sequence[str] = USUAL, headers: dict[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            # Not the whole of it: an address of a hook is a secret.
            raise ValueError(f"url must begin with http:// or https://, got {str(url)[:8]!r}.")
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or isinstance(kinds, str):
            raise ValueError(f"kinds must be some of {KINDS}, got {kinds!r}.")
        self._url, self._kinds, self._headers = url, tuple(kinds), dict(headers or {})
        self._run = ""
        self._is_in_incident = False

    def write(self, event: events.Event) -> None:
        """Post an event that somebody wants to hear of."""
        if isinstance(event, events.RunStarted):
            self._run, self._is_in_incident = event.name, False
        alert = alert_of(event)
        if alert is None:
            return
        kind, text = alert
        is_told = kind == "incident" and self._is_in_incident
        if kind == "incident":
            self._is_in_incident = True
        elif kind in ("recovered", "diverged", "finished", "stopped"):
            self._is_in_incident = False
        if kind in self._kinds and not is_told:
            self._post({"text": f"{self._run or 'run'}: {text}", "kind": kind, "run": self._run, "step": event.step})

    def _post(self, content: dict[str, Any]) -> None:
        import urllib.request

        headers = {"Content-Type": "application/json", **self._headers}
        request = urllib.request.Request(self._url, json.dumps(content).encode(), headers, method="POST")
        for left in reversed(range(TRIES)):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                    return
            except OSError:
                if not left:
                    raise
                time.sleep(PAUSE_SECONDS)
