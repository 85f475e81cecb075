"""``learnit-r8 compare``: two runs beside each other."""

from __future__ import annotations

import argparse
import math

from ..dashboard.state.comparison import figures_of, settings_of
from ..dashboard.state.view import View
from ..dashboard.text import clean, number
from ..events.codec import strict_json
from ..journal.run import Run, find_run
from .table import table_lines

WIDEST = 40


def compare(options: argparse.Namespace) -> int:
    """Print the figures of two runs, with a star at the better one, and the settings that differ."""
    runs = [Run(find_run(name)) for name in options.runs]
    views = [folded(run) for run in runs]
    figures, settings = figures_of(views), settings_of(views)
    names = [clean(run.name, WIDEST) for run in runs]
    if options.json:
        facts = {
            "runs": [str(run.folder) for run in runs],
            "names": names,
            "states": [run.state().word for run in runs],
            "figures": {row.name: row.values for row in figures},
            "better": {row.name: row.better for row in figures if row.better >= 0},
            "settings": {row.name: row.values for row in settings},
        }
        print(strict_json(facts, non_finite=lambda value: None))
        return 0
    texts = [("", *names), ("state", *(run.state().word for run in runs))]
    texts += [
        (clean(row.name, WIDEST), *(_text(value, row.better == place) for place, value in enumerate(row.values)))
        for row in figures
        if any(map(math.isfinite, row.values))
    ]
    print(*table_lines(texts, widest=WIDEST), sep="\n")
    if settings:
        rows = [(clean(row.name, WIDEST), *(clean(text, 200) for text in row.values)) for row in settings]
        print("\nsettings that differ", *table_lines(rows, widest=WIDEST), sep="\n")
    return 0


def folded(run: Run) -> View:
    """The state of a run from all its records."""
    view = View(skips_damage=True)
    for record in run.records():
        view.fold(record.event)
    return view


def _text(value: float, is_better: bool) -> str:
    return ("-" if math.isnan(value) else number(value)) + (" *" if is_better else "")
