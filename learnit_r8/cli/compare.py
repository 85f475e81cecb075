"""``learnit-r8 compare``: runs beside each other."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from ..dashboard.render.curves import chart_of
from ..dashboard.state.comparison import figures_of, settings_of
from ..dashboard.state.view import View
from ..dashboard.text import Line, figure, table_lines
from ..dashboard.theme import Style, Theme, choose_theme
from ..dashboard.watch import view_of
from ..events.codec import strict_json
from ..events.text import clean
from ..journal.run import Run, find_run, free_of_runs, names_of

WIDEST = 40
HEIGHT = 14


def compare(options: argparse.Namespace) -> int:
    """Print the figures of runs, with a star at the best one, the settings that differ, and their curves."""
    runs = [Run(find_run(name)) for name in options.runs]
    views = [view_of(run) for run in runs]
    facts = facts_of(runs, views)
    names = [clean(name, WIDEST) for name in names_of(runs)]
    if options.html:
        from ..report.comparison import write_comparison

        path = write_comparison([run.folder for run in runs], free_of_runs(options.html))
        print(clean(f"{path} ({path.stat().st_size / 1000:,.0f} kB)"), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(strict_json(facts, non_finite=lambda value: None))
        return 0
    if sys.stdout.isatty() and not options.html:
        # The losses of batches over each other, then every metric that all runs have.
        theme = choose_theme(encoding=sys.stdout.encoding or "ascii")
        width = min(shutil.get_terminal_size().columns, 120)
        shared = [name for name in views[0].metrics if all(name in view.metrics for view in views)]
        for metric in ("", *shared[:3]):
            for line in chart_of(views, names, metric, width, HEIGHT, theme):
                print(painted(line, theme))
            print()
    texts = [("", *names), ("state", *(run.state().word for run in runs))]
    texts += [
        (
            clean(row.name, WIDEST),
            *(figure(value) + " *" * (row.better == place) for place, value in enumerate(row.values)),
        )
        for row in figures_of(views)
        if any(map(math.isfinite, row.values))
    ]
    print(*table_lines(texts, widest=WIDEST), sep="\n")
    settings = settings_of(views)
    if settings:
        rows = [(clean(row.name, WIDEST), *(clean(text, 200) for text in row.values)) for row in settings]
        print("\nsettings that differ", *table_lines(rows, widest=WIDEST), sep="\n")
    return 0


def facts_of(runs: Sequence[Run], views: Sequence[View]) -> dict[str, Any]:
    """A comparison for programs.

    Raises:
        ValueError: there are not two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"compare needs two runs or more, got {len(runs)}: {[run.name for run in runs]}.")
    figures = figures_of(views)
    return {
        "runs": [str(run.folder) for run in runs],
        "names": [clean(name, WIDEST) for name in names_of(runs)],
        "states": [run.state().word for run in runs],
        "figures": {row.name: row.values for row in figures},
        "better": {row.name: row.better for row in figures if row.better >= 0},
        "settings": {row.name: row.values for row in settings_of(views)},
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
