"""Any number of runs beside each other: the best on top, whether it is better at all, and the page of them."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..dashboard.state.view import View
from ..dashboard.text import figure
from ..dashboard.watch import SeenRun, look
from ..events.steps import is_lower_better
from ..events.text import clean, number
from ..journal.run import Run, find_run
from ..state.durable_io import open_output
from .curves import best_point, fit_of, incident_marks, losses_of, points_of
from .document import Data, chart, curve, document, section, table

REACHED = ("steps", "training seconds", "best smoothed loss", "incidents", "losses refused", "suspects")
"""Figures that are columns besides the metrics, where they differ."""
MOST_METRICS = 24


def write_comparison(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write a page that compares runs.

    Args:
        runs: At least two run folders, or names of runs; see `find_run`.
        out: The file to write.

    Returns:
        Its path.

    Raises:
        UnreadableRun: a folder holds no run.
        ValueError: there are fewer than two.
        OSError: the file cannot be written.
    """
    if len(runs) < 2:
        raise ValueError(f"runs must be two or more, got {len(runs)}.")
    sections = list(comparison_sections(Comparison([look(find_run(os.fspath(run))) for run in runs])))
    with open(open_output(path := Path(out)), "w", encoding="utf-8") as file:
        file.write(document({"title": f"{len(runs)} runs", "sections": sections}))
    return path


class Figure(NamedTuple):
    """A column of a table of runs.

    Attributes:
        values: Its value in each run: a number, NaN where it has none, or the text of a setting.
        better: Place of the run that is better; -1 where neither is, or that cannot be said.
    """

    values: tuple[Any, ...]
    better: int = -1

    @property
    def texts(self) -> list[str]:
        """The values as texts."""
        return [figure(value) if isinstance(value, float) else value or "-" for value in self.values]


class Comparison:
    """Runs beside each other, however many.

    Args:
        runs: The runs, two or more.

    Raises:
        ValueError: there are not two.

    Attributes:
        runs: The runs.
        figures: What they reached, by name.
        differ: The settings that differ, by name.
        names: Their names: those that were given, else the settings that tell them apart, else their folders.
        metrics: Every metric that one of them has, the one that they are ordered by first.
        metric: That metric; "" where none was logged.
        order: Places of the runs, the best first, those without the metric last.
        columns: The columns of the table by name: the state, what was reached, then the settings that differ.
    """

    def __init__(self, runs: Sequence[SeenRun]) -> None:
        if len(runs) < 2:
            raise ValueError(f"compare needs two runs or more, got {len(runs)}: {[each.run.name for each in runs]}.")
        self.runs, views = list(runs), [each.view for each in runs]
        self.differ, self.figures = settings_of(views), figures_of(views)
        self.names = names_of([each.run for each in runs], self.differ)
        counts = Counter(name for view in views for name in view.metrics)
        wanted = next((view.run.settings.get("monitor", "") for view in views if view.run is not None), "")
        # The one that is monitored, else what most runs have logged, of those the first.
        self.metrics = sorted(counts, key=lambda name: (name != wanted, -counts[name]))
        self.metric, figures = self.metrics[0] if self.metrics else "", self.figures
        self._values = figures[f"{self.metric}, best" if self.metric else "best smoothed loss"].values
        self._sign = 1.0 if not self.metric or is_lower_better(self.metric) else -1.0
        keys = [self._sign * value if math.isfinite(value) else math.inf for value in self._values]
        self.order = sorted(range(len(runs)), key=keys.__getitem__)
        shown = [f"{name}, {what}" for name in self.metrics for what in ("best", "best at step")]
        shown += [name for name in REACHED if not shown or len(set(figures[name].values)) > 1]
        settings = {name.removeprefix("config."): Figure(texts) for name, texts in self.differ.items()}
        self.columns = {"state": Figure(tuple(each.state.word for each in runs))}
        self.columns |= {name: figures[name] for name in shown[:2]} | settings
        self.columns |= {name: figures[name] for name in shown[2:]}

    @property
    def facts(self) -> dict[str, Any]:
        """The comparison for programs."""
        figures = self.figures
        return {
            "runs": [str(each.run.folder) for each in self.runs], "names": self.names,
            "states": [each.state.word for each in self.runs], "order": self.order, "metric": self.metric,
            "verdict": self.verdict, "figures": {name: row.values for name, row in figures.items()},
            "better": {name: row.better for name, row in figures.items() if row.better >= 0}, "settings": self.differ,
        }  # fmt: skip

    @property
    def verdict(self) -> str:
        """Whether the best kind of run is better than the next: its lead, beside what seeds alone make of it."""
        kinds: dict[tuple[str, ...], list[float]] = {}
        for (_, view, _), value in zip(self.runs, self._values, strict=True):
            settings = sorted(chosen_settings(view).items())
            key = tuple(f"{name}={text}" for name, text in settings if not name.endswith("seed"))
            if math.isfinite(value):
                kinds.setdefault(key, []).append(value)
        ranked = sorted(kinds.values(), key=lambda values: self._sign * statistics.fmean(values))
        of = self.metric or "smoothed loss"
        if len(ranked) < 2:
            return f"Cannot tell: no two kinds of runs have a {of}."
        pair = ranked[:2]
        lead = abs(statistics.fmean(pair[0]) - statistics.fmean(pair[1]))
        # Of these two alone: a bad kind may vary by much more.
        spreads = [statistics.variance(values) for values in pair if len(values) > 1]
        leads = f"the best leads the next by {number(lead, 3)} in {of}"
        if not spreads:
            doubt = "Cannot tell whether that is more than chance"
            return f"{doubt}: {leads}, with one run of each; repeat with other seeds."
        noise = math.sqrt(statistics.fmean(spreads) * sum(1 / len(values) for values in pair))
        by = f"{leads}, where seeds alone make {number(noise, 3)}"
        return f"Better: {by}." if lead > 2 * noise else f"Cannot tell: {by}."


def names_of(runs: Sequence[Run], differ: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of runs that tell them apart."""
    told = [(name, texts) for name, texts in differ.items() if name.startswith("config.") and all(texts)][:2]
    by_setting = [
        ", ".join(f"{name.removeprefix('config.')}={clean(texts[place], 20)}" for name, texts in told)
        for place in range(len(runs))
    ]
    folders = [clean(run.folder.name, 60) for run in runs]
    choices = ([clean(run.name, 60) for run in runs], by_setting, folders)
    return next((names for names in choices if len(set(names)) == len(names)), folders)


def comparison_sections(runs: Comparison) -> Iterator[Data]:
    """Runs over each other, their verdict, and a row for each: the best on top, the settings that differ as columns."""
    rows: list[list[Any]] = []
    for place in runs.order:
        cells = [(column.texts[place], column.better == place) for column in runs.columns.values()]
        rows.append([clean(runs.names[place], 60), *({"bold": said} if is_best else said for said, is_best in cells)])
    note = f"By {runs.metric}, the best on top; of the settings those that differ." if runs.metric else ""
    compared = table(["run", *runs.columns], rows, kind="compared")
    yield section("Runs", {"text": runs.verdict}, compared, note=note)
    last = float(max(1, *(each.view.step for each in runs.runs)))
    for metric in ("", *runs.metrics[:MOST_METRICS]):
        series: list[Data] = []
        points: list[Data] = []
        marks: list[Data] = []
        for place, ((_, view, _), name) in enumerate(zip(runs.runs, runs.names, strict=True)):
            name, look = clean(name, 40), f"c{place % 6} d{place // 6 % 3}"
            if metric:
                one = points_of(view, metric, look) if metric in view.metrics else curve("", [], [])
                one |= {"name": name, "look": look, "dots": False}
            else:
                one = losses_of(view)[-1] | {"name": name, "look": look}
                one = {field: value for field, value in one.items() if field not in ("low", "high")}
                marks += [mark | {"label": f"{name}, {mark['label']}"} for mark in incident_marks(view.incidents)]
            series.append(one)
            if metric and metric == runs.metric and place == runs.order[0]:
                points += best_point(view, metric, look, f"best: {name},")
        if any(value is not None for one in series for value in one["y"]):
            title = clean(metric, 60) or "Loss of the batches, smoothed"
            more = {"from": 0, "to": last, "points": points, "marks": marks, "fit": fit_of(series, last), "ends": True}
            yield section(title, chart(f"{title} over the steps", series, x_name="step", log=False, height=280, **more))


NOT_CHOSEN = frozenset({"machine", "process", "run_dir", "checkpoint_dir", "backup_dir", "name", "notes", "tags"})
"""Settings that say where a run was, not how."""


def figures_of(views: Sequence[View]) -> dict[str, Figure]:
    """The figures of runs: what they reached, how fast, and with how much trouble."""
    rows: dict[str, Figure] = {}

    def add(name: str, values: Sequence[float | None], lower: bool | None = None) -> None:
        """Add a figure, with the run that is better where all have one; ``lower`` says whether lower is."""
        known = [math.nan if value is None else float(value) for value in values]
        better = -1
        if lower is not None and all(map(math.isfinite, known)) and len(set(known)) > 1:
            better = known.index((min if lower else max)(known))
        rows[name] = Figure(tuple(known), better)

    add("steps", [view.step for view in views])
    add("training seconds", [view.seconds for view in views])
    add("samples a second", [view.pacing.samples_per_second for view in views], False)
    add("smoothed loss", [view.ema for view in views], True)
    add("best smoothed loss", [view.best.value if view.best else None for view in views], True)
    # Those that all have come first.
    names = dict.fromkeys(name for view in views for name in view.metrics)
    for name in sorted(names, key=lambda name: not all(name in view.metrics for view in views)):
        lower, bests = is_lower_better(name), [view.bests.get(name) for view in views]
        points = [view.metrics.get(name) for view in views]
        add(f"{name}, last", [each[-1].value if each else None for each in points], lower)
        add(f"{name}, best", [best.value if best else None for best in bests], lower)
        add(f"{name}, best at step", [best.step if best else None for best in bests])
    add("incidents", [len(view.incidents) for view in views], True)
    add("losses refused", [view.num_refused for view in views], True)
    add("warnings", [view.num_alerts for view in views], True)
    add("suspects", [view.survey.num_suspects if view.survey else None for view in views])
    return rows


def settings_of(views: Sequence[View]) -> dict[str, tuple[str, ...]]:
    """The settings that differ between runs: the text of each in every run, "" where it was not given."""
    every = [chosen_settings(view) for view in views]
    names = dict.fromkeys(itertools.chain(*every))
    rows = {name: tuple(settings.get(name, "") for settings in every) for name in names}
    return {name: texts for name, texts in rows.items() if len(set(texts)) > 1}


def chosen_settings(view: View) -> dict[str, str]:
    """The settings of a run that say how it was made, by name."""
    run = view.run
    if run is None:
        return {}
    facts = {"samples": run.num_samples, "batch_size": run.batch_size}
    told = {name: f"{count:,}" for name, count in facts.items() if count} | {"policy": run.policy}
    told |= {"steps": f"{run.total_steps:,}"} if run.total_steps else {}
    return {name: text for name, text in (told | run.settings).items() if name not in NOT_CHOSEN}
