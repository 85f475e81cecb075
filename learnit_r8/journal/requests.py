"""Requests from outside: small files in the folder of a run, which its journal's thread reads and deletes.

`ask` writes one, for ``learnit-r8 ask``; `RequestFolder` reads them. A file names the process that it is meant for, so
that a request which came too late never reaches a later one. Nothing in a file is trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..events.bus import RunControl
from ..events.codec import strict_json
from ..schedules.span import Span, checked_span, read_span, span_of
from ..state.durable_io import make_own_folder, open_regular, replace
from .run import is_gone, read_sessions

FOLDER = "requests"
FORMAT = 1
KINDS = ("cool-down", "pause", "unpause", "save", "stop")
MOST_BYTES = 4096
_NAME = re.compile(r"\d{20}-\d+\.json")
MOST_FILES = 100
"""Most files that one look into the folder reads."""


def ask(folder: Path, kind: str, *, length: str | None = None, until: str | None = None) -> Path:
    """Write a request to the run in a folder.

    Args:
        folder: The run folder.
        kind: One of KINDS.
        length: Length of a cool-down, such as "20min", "500 steps" or "2 epochs".
        until: Its end instead, a local time such as "20:30".

    Returns:
        The file, which disappears when the run has read it, within about a second.

    Raises:
        ValueError: an argument cannot be used, or no process runs there that could read it.
        OSError: the folder cannot be written to.
    """
    if kind != "cool-down" and (length is not None or until is not None):
        raise ValueError(f"a length or a time is for a cool-down only, got {length or until!r} with {kind!r}.")
    if length is not None and until is not None:
        raise ValueError(f"at most one of a length and a time must be given, got {length!r} and {until!r}.")
    span = span_of(until=until) if length is None else read_span("the length", length)
    session = next(iter(read_sessions(folder)[-1:]), None)
    if session is None or is_gone(session) is True:
        raise ValueError(f"no process trains in {str(folder)!r} any more, so nothing would read the request.")
    content = {
        "format": FORMAT, "ask": kind, "span": None if span is None else list(span), "run": folder.resolve().name,
        "session": _identity(session), "made": time.time(),
    }  # fmt: skip
    requests = folder / FOLDER
    make_own_folder(requests, 0o700)
    path = requests / f"{time.time_ns():020d}-{os.getpid()}.json"
    replace(path, strict_json(content).encode())
    return path


def _identity(session: Mapping[str, Any]) -> list[Any]:
    return [session.get("host"), session.get("pid"), session.get("started")]


class RequestFolder:
    """Reads the requests in the folder of a run, in the order in which they were made.

    Args:
        folder: The run folder.
        taker: Carries them out.

    The newest process in run.json must be this one.
    """

    def __init__(self, folder: Path, taker: RunControl) -> None:
        self._run, self._folder, self._taker = folder.resolve().name, folder / FOLDER, taker
        session = next(iter(read_sessions(folder)[-1:]), {})
        self._session = _identity(session)
        self._done: set[str] = set()

    def look(self) -> None:
        """Carry out the requests that are there, and delete their files."""
        try:
            # Not by way of a link: what is read here is deleted.
            is_folder = stat.S_ISDIR(os.lstat(self._folder).st_mode)
            names = sorted(filter(_NAME.fullmatch, os.listdir(self._folder))) if is_folder else []
        except OSError:
            return
        for name in [name for name in names if name not in self._done][:MOST_FILES]:
            # Noted first: where the folder cannot be written to, a file stays, and must count once.
            self._done.add(name)
            try:
                asked = self._read(self._folder / name)
            except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
                self._taker.refuse(f"the request in {name!r} is ignored: {error}")
            else:
                if asked is not None:
                    kind, span = asked
                    taker, source = self._taker, "by learnit-r8 ask"
                    calls: dict[str, Callable[[], None]] = {
                        "cool-down": partial(taker.cool_down, span, source), "pause": partial(taker.pause, source),
                        "unpause": taker.resume, "save": taker.save, "stop": partial(taker.stop, source),
                    }  # fmt: skip
                    calls[kind]()
            with contextlib.suppress(OSError):
                os.unlink(self._folder / name)

    def _read(self, path: Path) -> tuple[str, Span | None] | None:
        """Kind and length of the request in a file; None for one to an earlier process.

        Raises:
            ValueError: it is not a regular file of this user, is too large, or holds no request.
            OSError: it cannot be read.
        """
        with open_regular(path) as file:
            owner = os.fstat(file.fileno()).st_uid
            if hasattr(os, "getuid") and owner != os.getuid():
                raise ValueError(f"it must belong to the user who trains ({os.getuid()}), got one of user {owner}.")
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it must have at most {MOST_BYTES} bytes.")
        about = json.loads(content)
        if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("ask") not in KINDS:
            raise ValueError(f"it must ask for one of {KINDS} in format {FORMAT}, got {str(about)[:80]}.")
        if about.get("run") != self._run or about.get("session") != self._session:
            return None
        span = about.get("span")
        if span is not None and (not isinstance(span, list) or len(span) != 2):
            raise ValueError(f"its length must be a unit and an amount, got {str(span)[:80]}.")
        return about["ask"], None if span is None else checked_span(*span)
