"""``learnit-r8 compare`` and ``report``: runs beside each other, and a run as one HTML page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

from ..dashboard.text import table_lines
from ..dashboard.watch import look
from ..events.codec import strict_json
from ..events.text import clean
from ..journal.run import NO_RUNS, UnreadableRun, find_run, free_of_runs, is_run, runs_in
from ..report import write_report
from ..report.comparison import Comparison, write_comparison

WIDEST = 40


def report(options: argparse.Namespace) -> int:
    """Write the page, beside the run unless a file is given, and print its path; open it where that is asked for."""
    folder = find_run(options.run)
    path = write_report(folder, free_of_runs(options.html or folder / "report.html"))
    if options.json:
        print(strict_json({"report": str(path), "bytes": path.stat().st_size}))
    _show(path, options, None if options.json else sys.stdout)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print a row for each run, the best on top, with a star at the best of each column, and a verdict."""
    parent = Path(options.runs[0])
    is_parent = len(options.runs) == 1 and parent.is_dir() and not is_run(parent)
    folders = runs_in(parent) if is_parent else [find_run(name) for name in options.runs]
    if not folders:
        raise UnreadableRun(NO_RUNS.format(str(parent)))
    compared = Comparison([look(folder) for folder in folders])
    if options.html or options.open:
        out = free_of_runs(options.html or (folders[0].parent / "compared.html"))
        _show(write_comparison(folders, out), options, sys.stderr if options.json else sys.stdout)
    if options.json:
        print(strict_json(compared.facts, non_finite=lambda value: None))
        return 0
    columns = {name: column for name, column in compared.columns.items() if set(column.texts) != {"-"}}
    rows = [("run", *(clean(name, WIDEST) for name in columns))]
    for place in compared.order:
        texts = (column.texts[place] + " *" * (column.better == place) for column in columns.values())
        rows.append((compared.names[place], *(clean(text, 200) for text in texts)))
    print(*table_lines(rows, widest=WIDEST), sep="\n")
    print(f"\n{compared.verdict}")
    return 0


def _show(path: Path, options: argparse.Namespace, out: TextIO | None) -> None:
    """Print the path of a page; where asked for, show the page in the browser, or say that there is none."""
    import webbrowser

    if out is not None:
        print(clean(f"{path} ({path.stat().st_size / 1000:,.0f} kB)"), file=out)
    if options.open and not webbrowser.open(path.resolve().as_uri()):
        print("learnit-r8: no browser could be opened", file=sys.stderr)
