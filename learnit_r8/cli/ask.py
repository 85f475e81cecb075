"""``learnit-r8 ask``: asks a running training for something, from outside."""

from __future__ import annotations

import argparse
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
            print(f"{options.kind}: the run has read it and answers after its step")
            return 0
        time.sleep(0.05)
    print(f"{options.kind}: not read yet; the request stays in {path}")
    return 3
