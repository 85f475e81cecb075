"""``learnit-r8 report``: a run as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..dashboard.text import clean
from ..journal.run import find_run
from ..report import write_report


def report(options: argparse.Namespace) -> int:
    """Write the page and print its path."""
    path = write_report(find_run(options.run), Path(options.html))
    print(clean(f"{path} ({path.stat().st_size / 1000:,.0f} kB)"))
    return 0
