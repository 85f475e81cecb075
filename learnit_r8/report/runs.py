"""Any number of runs beside each other: their names, the best on top, and whether it is better at all."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..dashboard.state.comparison import (
    Figure,
    Setting,
    best_of,
    best_step_of,
    chosen_settings,
    figures_of,
    make_figure,
    settings_of,
)  # fmt: skip
from ..dashboard.state.view import View
from ..dashboard.text import figure
from ..events.steps import is_lower_better
from ..events.text import clean, number
from ..journal.run import Run


class Column(NamedTuple):
    """A column of a table of runs.

    Attributes:
        texts: Its text for each run.
        better: Place of the run that is better; -1 where neither is, or that cannot be said.
    """

    texts: tuple[str, ...]
    better: int = -1


class Comparison:
    """Runs beside each other, however many.

    Args:
        runs: The runs, two or more.
        views: Their states.

    Raises:
        ValueError: there are not two.

    Attributes:
        names: Their names: those that were given, else the settings that tell them apart, else their folders.
        metrics: Every metric that one of them has, the one that they are ordered by first.
        metric: That metric; "" where none was logged.
        order: Places of the runs, the best first, those without the metric last.
        columns: The columns of the table by name: what was reached, then the settings that differ.
    """

    def __init__(self, runs: Sequence[Run], views: Sequence[View]) -> None:
        if len(runs) < 2:
            raise ValueError(f"compare needs two runs or more, got {len(runs)}: {[run.name for run in runs]}.")
        self.views = list(views)
        differ = settings_of(views)
        self.names = names_of(runs, differ)
        counts = Counter(name for view in views for name in view.metrics)
        wanted = next((view.run.settings.get("monitor", "") for view in views if view.run is not None), "")
        # The one that is monitored, else what most runs have logged, of those the first.
        self.metrics = sorted(counts, key=lambda name: (name != wanted, -counts[name]))
        self.metric = self.metrics[0] if self.metrics else ""
        known = {name: [best_of(view, name) for view in views] for name in self.metrics}
        smoothed = [view.best.value if view.best is not None else math.nan for view in views]
        sign = 1.0 if not self.metric or is_lower_better(self.metric) else -1.0
        self._values = known.get(self.metric, smoothed)
        keys = [sign * value if math.isfinite(value) else math.inf for value in self._values]
        self.order = sorted(range(len(runs)), key=keys.__getitem__)
        self._sign = sign
        figures = [make_figure(f"{name}, best", known[name], lower=is_lower_better(name)) for name in self.metrics]
        at = [
            Figure(f"{name}, best at step", tuple(best_step_of(view, name) for view in views)) for name in self.metrics
        ]
        rows = [row for pair in zip(figures, at, strict=True) for row in pair]
        rows += [row for row in figures_of(views) if row.name in REACHED and len(set(row.values)) > 1 - (not rows)]
        shown = [(row.name, Column(tuple(map(figure, row.values)), row.better)) for row in rows]
        settings = [
            (row.name.removeprefix("config."), Column(tuple(text or "-" for text in row.values))) for row in differ
        ]
        self.columns = {"state": Column(tuple(run.state().word for run in runs))}
        self.columns |= dict([*shown[:2], *settings, *shown[2:]])

    @property
    def verdict(self) -> str:
        """Whether the best kind of run is better than the next: its lead, beside what seeds alone make of it."""
        kinds: dict[tuple[str, ...], list[float]] = {}
        chosen = [chosen_settings(view) for view in self.views]
        for settings, value in zip(chosen, self._values, strict=True):
            key = tuple(f"{name}={text}" for name, text in sorted(settings.items()) if not name.endswith("seed"))
            if math.isfinite(value):
                kinds.setdefault(key, []).append(value)
        ranked = sorted(kinds.values(), key=lambda values: self._sign * statistics.fmean(values))
        of = self.metric or "smoothed loss"
        if len(ranked) < 2:
            return f"Cannot tell: no two kinds of runs have a {of}."
        first, second = ranked[:2]
        lead = abs(statistics.fmean(first) - statistics.fmean(second))
        spreads = [statistics.variance(values) for values in ranked if len(values) > 1]
        leads = f"the best leads the next by {number(lead, 3)} in {of}"
        if not spreads:
            return (
                f"Cannot tell whether that is more than chance: {leads}, with one run of each; repeat with other seeds."
            )
        noise = math.sqrt(statistics.fmean(spreads) * (1 / len(first) + 1 / len(second)))
        by = f"{leads}, where seeds alone make {number(noise, 3)}"
        return f"Better: {by}." if lead > 2 * noise else f"Cannot tell: {by}."


REACHED = ("best smoothed loss", "steps", "training seconds", "incidents", "losses refused", "suspects")
"""Figures that are columns besides the metrics, where they differ."""


def names_of(runs: Sequence[Run], differ: Sequence[Setting]) -> list[str]:
    """Names of runs that tell them apart."""
    own = [clean(run.name, 60) for run in runs]
    told = [row for row in differ if row.name.startswith("config.") and all(row.values)]
    by_setting = [
        ", ".join(f"{row.name.removeprefix('config.')}={clean(row.values[place], 20)}" for row in told[:2])
        for place in range(len(runs))
    ]
    folders = [clean(run.folder.name, 60) for run in runs]
    return next((names for names in (own, by_setting, folders) if len(set(names)) == len(names)), folders)
