"""``learnit-r8 compare``: runs beside each other."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dashboard.render.curves import chart_of
from ..dashboard.state.comparison import figures_of, settings_of
from ..dashboard.text import Line, table_lines
from ..dashboard.theme import Style, Theme, choose_theme
from ..dashboard.watch import view_of
from ..events.codec import strict_json
from ..events.text import clean
from ..journal.run import NO_RUNS, Run, UnreadableRun, find_run, free_of_runs, is_run, runs_in
from ..report.runs import Comparison
from .report import open_page

WIDEST = 40
HEIGHT = 14


def compare(options: argparse.Namespace) -> int:
    """Print a row for each run, the best on top, with a star at the best of each column, a verdict, and the curves."""
    runs = runs_of(options.runs)
    compared = Comparison(runs, [view_of(run) for run in runs])
    if options.html or options.open:
        from ..report.comparison import write_comparison

        out = options.html or (runs[0].folder.parent / "compared.html")
        path = write_comparison([run.folder for run in runs], free_of_runs(out))
        print(clean(f"{path} ({path.stat().st_size / 1000:,.0f} kB)"), file=sys.stderr if options.json else sys.stdout)
        if options.open:
            open_page(path)
    if options.json:
        print(strict_json(facts_of(runs, compared), non_finite=lambda value: None))
        return 0
    if sys.stdout.isatty() and not options.html:
        # The losses of batches over each other, then every metric.
        theme = choose_theme(encoding=sys.stdout.encoding or "ascii")
        width = min(shutil.get_terminal_size().columns, 120)
        for metric in ("", *compared.metrics[:3]):
            for line in chart_of(compared.views, compared.names, metric, width, HEIGHT, theme):
                print(painted(line, theme))
            print()
    columns = {name: column for name, column in compared.columns.items() if set(column.texts) != {"-"}}
    rows = [("run", *(clean(name, WIDEST) for name in columns))]
    for place in compared.order:
        texts = (column.texts[place] + " *" * (column.better == place) for column in columns.values())
        rows.append((compared.names[place], *(clean(text, 200) for text in texts)))
    print(*table_lines(rows, widest=WIDEST), sep="\n")
    print(f"\n{compared.verdict}")
    return 0


def runs_of(names: Sequence[str]) -> list[Run]:
    """The runs that are meant; of one folder of runs, all that are in it.

    Raises:
        UnreadableRun: there is none.
    """
    folder = Path(names[0])
    if len(names) == 1 and folder.is_dir() and not is_run(folder):
        found = runs_in(folder)
        if not found:
            raise UnreadableRun(NO_RUNS.format(str(folder)))
    else:
        found = [find_run(name) for name in names]
    return [Run(each) for each in found]


def facts_of(runs: Sequence[Run], compared: Comparison) -> dict[str, Any]:
    """A comparison for programs."""
    figures = figures_of(compared.views)
    return {
        "runs": [str(run.folder) for run in runs],
        "names": compared.names,
        "states": [run.state().word for run in runs],
        "order": compared.order,
        "metric": compared.metric,
        "verdict": compared.verdict,
        "figures": {row.name: row.values for row in figures},
        "better": {row.name: row.better for row in figures if row.better >= 0},
        "settings": {row.name: row.values for row in settings_of(compared.views)},
    }


def painted(line: Line, theme: Theme) -> str:
    """A line with the colours of a theme, as a terminal takes them."""
    parts = []
    for text, name in line:
        style = theme.styles.get(name, Style())
        is_rich = theme.num_colours >= 256
        colour = style.colour if is_rich else style.colour8 if theme.num_colours else None
        code = f"38;5;{colour}" if is_rich else f"3{colour}"
        parts.append(text if colour is None else f"\x1b[{code}m{text}\x1b[0m")
    return "".join(parts).rstrip()
