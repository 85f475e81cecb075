"""``learnit-r8 ask``: asks a running training for something, from outside."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from ..journal.requests import ask as write_request
from ..journal.run import find_run
from ..schedules.span import read_span

WAIT_SECONDS = 5.0


def ask(options: argparse.Namespace) -> int:
    """Write a request into the folder of a run, and wait until the run has read it.

    Returns:
        0 when it was read, 3 if that took longer than some seconds.
    """
    is_read = wait_for(find_run(options.run), options.kind, options.length, options.until)
    said = "the run has read it and answers after its step" if is_read else "not read yet; the request stays there"
    kind = options.kind
    if options.length is not None:
        kind += f" over {read_span('--for', options.length)}"
        if options.length.strip().isdigit():
            kind += f" (a time needs a unit, as in --for {options.length.strip()}min)"
    print(json.dumps({"request": options.kind, "is_read": is_read}) if options.json else f"{kind}: {said}")
    return 0 if is_read else 3


def wait_for(folder: Path, kind: str, length: str | None, until: str | None) -> bool:
    """Ask the run in a folder for something; see `journal.requests.ask`.

    Returns:
        Whether it has read the request within some seconds; if not, the request stays.
    """
    path = write_request(folder, kind, length=length, until=until)
    end = time.monotonic() + WAIT_SECONDS
    while path.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True
