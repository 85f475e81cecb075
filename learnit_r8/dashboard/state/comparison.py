"""Runs beside each other: the same figures of all, and the settings that differ."""

from __future__ import annotations

import itertools
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


def figures_of(views: Sequence[View]) -> list[Figure]:
    """The figures of runs: what they reached, how fast, and with how much trouble."""
    rows: list[Figure] = []

    def add(name: str, values: Sequence[float | None], lower: bool | None = None) -> None:
        """Add a figure, with the run that is better where all have one; ``lower`` says whether lower is."""
        known = [math.nan if value is None else float(value) for value in values]
        better = -1
        if lower is not None and all(map(math.isfinite, known)) and len(set(known)) > 1:
            better = known.index((min if lower else max)(known))
        rows.append(Figure(name, tuple(known), better))

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
