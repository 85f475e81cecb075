"""A logger that calls a webhook when somebody should look."""

from __future__ import annotations

import json
import re
import time
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import events
from .background import Logger, alert_of

if TYPE_CHECKING:
    import urllib.request

KINDS = ("incident", "cause", "quarantine", "recovered", "diverged", "finished", "stopped")
USUAL = ("incident", "cause", "diverged", "finished", "stopped")
TIMEOUT_SECONDS = 10.0
TRIES = 3
PAUSE_SECONDS = 2.0
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Webhook(Logger):
    """Post JSON to an address when something happens: ``{"text": ..., "kind": ..., "run": ..., "step": ...}``.

    Chat services show the field ``text``. An incident is posted once, however many losses it refuses. A redirect is not
    followed, as whoever it leads to would get the headers: the post counts as lost.

    Args:
        url: The address, http or https.
        kinds: What to post: some of "incident", "cause", "quarantine", "recovered", "diverged", "finished", "stopped".
        headers: More headers, such as an authorisation.
        **options: Of `Logger`.

    Raises:
        ValueError: ``url``, one of ``kinds`` or one of ``headers`` is not valid.
    """

    def __init__(
        self, url: str, *, kinds: Sequence[str] = USUAL, headers: dict[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        if not _is_address(url):
            # Not the whole of it: an address of a hook is a secret.
            raise ValueError(
                f"url must begin with http:// or https://, name a host, and have no spaces, got {str(url)[:8]!r}..."
            )
        for name, value in dict(headers or {}).items():
            if not (isinstance(name, str) and _NAME.fullmatch(name) and isinstance(value, str) and _is_line(value)):
                raise ValueError(f"headers must be names and one-line strings, got something else for {name!r}.")
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
        import http.client
        import urllib.error
        import urllib.request

        headers = {"Content-Type": "application/json", **self._headers}
        request = urllib.request.Request(self._url, json.dumps(content).encode(), headers, method="POST")
        for left in reversed(range(TRIES)):
            try:
                with _opener().open(request, timeout=TIMEOUT_SECONDS):
                    return
            except urllib.error.HTTPError as error:
                error.close()
                if 300 <= error.code < 400:
                    raise Redirected(
                        f"the server answered with a redirect ({error.code}), which is not followed, as that would "
                        "send the headers elsewhere; give the address that it leads to"
                    ) from None
                if not left:
                    raise
            except (OSError, http.client.HTTPException):
                if not left:
                    raise
            time.sleep(PAUSE_SECONDS)


class Redirected(OSError):
    """The hook has another address now."""


def _opener() -> urllib.request.OpenerDirector:
    """An opener that leaves redirects to its caller, as errors."""
    import urllib.request

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> None:
            return None

    return urllib.request.build_opener(Stay)


def _is_line(text: str) -> bool:
    return text.isprintable() and text.isascii()


def _is_address(url: Any) -> bool:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")) or not _is_line(url) or " " in url:
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
