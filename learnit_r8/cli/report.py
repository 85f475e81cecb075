"""``learnit-r8 report``: a run as one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..events.codec import strict_json
from ..events.text import clean
from ..journal.run import find_run, free_of_runs


def report(options: argparse.Namespace) -> int:
    """Write the page, beside the run unless a file is given, and print its path; open it where that is asked for."""
    from ..report import write_report

    folder = find_run(options.run)
    other = find_run(options.compare) if options.compare else None
    path = write_report(folder, free_of_runs(options.html or folder / "report.html"), other=other)
    size = path.stat().st_size
    print(
        strict_json({"report": str(path), "bytes": size}) if options.json else clean(f"{path} ({size / 1000:,.0f} kB)")
    )
    if options.open:
        open_page(path)
    return 0


def open_page(path: Path) -> None:
    """Show a page in the browser, or say that there is none."""
    import webbrowser

    if not webbrowser.open(path.resolve().as_uri()):
        print("learnit-r8: no browser could be opened", file=sys.stderr)
