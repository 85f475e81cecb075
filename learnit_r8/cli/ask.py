"""``learnit-r8 ask``: asks a running training for something, from outside."""

from __future__ import annotations

import argparse
import json
import time

from ..journal.requests import ask as write_request
from ..journal.run import find_run

WAIT_SECONDS = 5.0


def ask(options: argparse.Namespace) -> int:
    """Write a request into the folder of a run, and wait until the run has read it.

    Returns:
        0 when it was read, 3 if that took longer than some seconds.
    """
    path = write_request(find_run(options.run), options.kind, length=options.length, until=options.until)
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        if not path.exists():
            return _answered(options, True, "the run has read it and answers after its step")
        time.sleep(0.05)
    return _answered(options, False, f"not read yet; the request stays in {path}")


def _answered(options: argparse.Namespace, is_read: bool, text: str) -> int:
    print(json.dumps({"request": options.kind, "is_read": is_read}) if options.json else f"{options.kind}: {text}")
    return 0 if is_read else 3
