"""Runs beside each other: the same figures of all, and the settings that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ...events.steps import is_lower_better
from .view import View

NOT_CHOSEN = frozenset({"machine", "process", "run_dir", "checkpoint_dir", "backup_dir", "name", "notes", "tags"})
"""Settings that say where a run was, not how."""


class Figure(NamedTuple):
    """A figure of all runs.

    Attributes:
        name: Its name.
        values: Its value in each run; NaN where it has none.
        better: Place of the run that is better; -1 where neither is, or that cannot be said.
    """

    name: str
    values: tuple[float, ...]
    better: int = -1


class Setting(NamedTuple):
    """A setting that differs.

    Attributes:
        name: Its name.
        values: Its text in each run; "" where it was not given.
    """

    name: str
    values: tuple[str, ...]


def figures_of(views: Sequence[View]) -> list[Figure]:
    """The figures of runs: what they reached, how fast, and with how much trouble."""
    names = [name for name in views[0].metrics if all(name in view.metrics for view in views[1:])]
    others = [name for view in views for name in view.metrics if name not in names]
    rows = [
        Figure("steps", tuple(float(view.step) for view in views)),
        Figure("training seconds", tuple(view.seconds for view in views)),
        make_figure("samples a second", [view.pacing.samples_per_second for view in views], lower=False),
        make_figure("smoothed loss", [view.ema for view in views], lower=True),
        make_figure("best smoothed loss", [view.best.value if view.best else math.nan for view in views], lower=True),
    ]
    for name in dict.fromkeys([*names, *others]):
        lower = is_lower_better(name)
        for what, value in (("last", last_of), ("best", best_of)):
            rows.append(make_figure(f"{name}, {what}", [value(view, name) for view in views], lower=lower))
        rows.append(make_figure(f"{name}, best at step", [best_step_of(view, name) for view in views]))
    rows.append(make_figure("incidents", [float(len(view.incidents)) for view in views], lower=True))
    rows.append(make_figure("losses refused", [float(view.num_refused) for view in views], lower=True))
    rows.append(make_figure("warnings", [float(view.num_alerts) for view in views], lower=True))
    rows.append(
        make_figure("suspects", [float(view.survey.num_suspects) if view.survey else math.nan for view in views])
    )
    return rows


def settings_of(views: Sequence[View]) -> list[Setting]:
    """The settings that differ between runs."""
    every = [chosen_settings(view) for view in views]
    names = dict.fromkeys(name for settings in every for name in settings)
    rows = [Setting(name, tuple(settings.get(name, "") for settings in every)) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]


def last_of(view: View, name: str) -> float:
    """The newest value of a metric; NaN without one."""
    points = view.metrics.get(name)
    return points[-1].value if points else math.nan


def best_of(view: View, name: str) -> float:
    """The best value of a metric; NaN without one."""
    return view.bests[name].value if name in view.bests else math.nan


def best_step_of(view: View, name: str) -> float:
    """The step of the best value of a metric; NaN without one."""
    return float(view.bests[name].step) if name in view.bests else math.nan


def make_figure(name: str, values: Sequence[float], *, lower: bool | None = None) -> Figure:
    """A figure, with the run that is better where all have one; ``lower`` says whether lower is, None for neither."""
    known = [value for value in values if math.isfinite(value)]
    better = -1
    if lower is not None and len(known) == len(values) and len(set(known)) > 1:
        better = list(values).index((min if lower else max)(known))
    return Figure(name, tuple(values), better)


def chosen_settings(view: View) -> dict[str, str]:
    """The settings of a run that say how it was made, by name."""
    run = view.run
    if run is None:
        return {}
    facts = {"policy": run.policy}
    if run.batch_size:
        facts = {"batch_size": f"{run.batch_size:,}", **facts}
    if run.num_samples:
        facts = {"samples": f"{run.num_samples:,}", **facts}
    if run.total_steps:
        facts["steps"] = f"{run.total_steps:,}"
    return {name: text for name, text in (facts | run.settings).items() if name not in NOT_CHOSEN}
