"""The figures of a group of runs in `incidents.py`, from what became of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from incident_runs import BACKUP_EVERY

Record = dict[str, float]


class Results(NamedTuple):
    """What became of the cases of a group.

    Attributes:
        cases: The cases.
        records: For each way to train, one record a case.
    """

    cases: Sequence[Any]
    records: dict[str, list[Record]]

    def column(self, arm: str, name: str) -> Any:
        """float[R], one value of each run."""
        return np.array([record.get(name, math.nan) for record in self.records[arm]])

    def below(self, arm: str, reference: str) -> Any:
        """float[R], points by which the score is below that of another way to train."""
        return self.column(reference, "score") - self.column(arm, "score")


class Figure(NamedTuple):
    """A row of a table.

    Attributes:
        text: What is measured.
        must: What it must be; "" where nothing is asked.
        measure: From the results and a way to train to what is shown.
        arms: The ways that it is shown for; () for all.
    """

    text: str
    must: str
    measure: Callable[[Results, str], str]
    arms: tuple[str, ...] = ()


def describe(values: Any, form: str = ".2f") -> str:
    """Mean, its standard error, and the worst, the highest."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    if not values.size:
        return "-"
    error = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else math.nan
    return f"{values.mean():{form}} ± {error:{form}}, worst {values.max():{form}}"


def count(name: str, must: str = "", text: str = "") -> Figure:
    """Runs in which something happened."""

    def measure(results: Results, arm: str) -> str:
        values = results.column(arm, name)
        return f"{int((values > 0).sum())} of {len(values)}"

    return Figure(text or name, must, measure)


def average(name: str, must: str = "", text: str = "", form: str = ".1f") -> Figure:
    """Mean over all runs, standard error and highest."""
    return Figure(text or name, must, lambda results, arm: describe(results.column(arm, name), form))


def points_below(reference: str, must: str = "", text: str = "") -> Figure:
    """Points by which runs are below another way to train."""
    text = text or f"points below {reference}"
    return Figure(text, must, lambda results, arm: describe(results.below(arm, reference)))


def within(points: float, reference: str, must: str) -> Figure:
    """Runs that are not further below another way to train than so many points."""

    def measure(results: Results, arm: str) -> str:
        below = results.below(arm, reference)
        return f"{int((below <= points).sum())} of {len(below)}"

    return Figure(f"runs within {points:g} points of {reference}", must, measure)


def worse_than(share: float, reference: str, must: str) -> Figure:
    """Runs whose score is less than a share of another way's."""

    def measure(results: Results, arm: str) -> str:
        limit = share * results.column(reference, "score")
        return f"{int((results.column(arm, 'score') < limit).sum())} of {len(limit)}"

    return Figure(f"runs below {share:.0%} of {reference}", must, measure)


def measure_share(results: Results, arm: str) -> str:
    """Mean share of the planned rate, and the lowest."""
    values = results.column(arm, "share")
    values = values[np.isfinite(values)]
    return f"{values.mean():.3f}, lowest {values.min():.2f}" if values.size else "-"


def measure_beyond(results: Results, arm: str) -> str:
    """What an incident undid beyond its damage, in distances between backups."""
    incidents = results.column(arm, "incidents").sum()
    if not incidents:
        return "no restore"
    mean = results.column(arm, "beyond").sum() / incidents / BACKUP_EVERY
    furthest = results.column(arm, "furthest") / BACKUP_EVERY
    return f"{mean:.1f}, most {furthest.max():.1f}; over 2 in {int((furthest > 2).sum())} runs"


def measure_worse(results: Results, arm: str) -> str:
    """Runs that are worse than with "finite" by more than noise: twice the spread of its scores in this setting."""
    scores, below = results.column("finite", "score"), results.below(arm, "finite")
    settings = np.array([case.setting for case in results.cases])
    worse = 0
    for setting in sorted(set(settings)):
        chosen = settings == setting
        spread = scores[chosen].std(ddof=1) if chosen.sum() > 1 else 0.0
        worse += int((below[chosen] > max(0.5, 2 * spread)).sum())
    return f"{worse} of {len(below)}"


def measure_equal(results: Results, arm: str) -> str:
    """Runs whose score is that of plain training to the last bit."""
    below = results.below(arm, "plain")
    return f"{int((below == 0).sum())} of {len(below)}"


def relative_loss(results: Results, arm: str, reference: str) -> Any:
    """float[R], by what share of its size the final loss is above that of another way to train."""
    own, other = results.column(arm, "loss"), results.column(reference, "loss")
    return np.where(np.isfinite(own), (own - other) / np.maximum(np.abs(other), 1e-3), 10.0)


def paired_loss(reference: str, must: str) -> Figure:
    """Final loss against another way to train with the same batches, and whether the difference is significant."""

    def measure(results: Results, arm: str) -> str:
        values = np.clip(relative_loss(results, arm, reference), -10, 10)
        error = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else 0.0
        verdict = "significant" if abs(values.mean()) > 2 * error and np.any(values) else "not significant"
        return f"{values.mean():+.1%} ± {error:.1%}, {verdict}; equal {int((values == 0).sum())} of {len(values)}"

    return Figure(f"final loss against {reference}, paired", must, measure)


def ruined(reference: str, must: str) -> Figure:
    """Runs whose final loss is half as high again as another way's, and whose score is lower by two points."""

    def measure(results: Results, arm: str) -> str:
        is_ruined = (relative_loss(results, arm, reference) > 0.5) & (results.below(arm, reference) > 2)
        return f"{int(is_ruined.sum())} of {len(is_ruined)}"

    return Figure(f"ruined: loss x 1.5 and 2 points below {reference}", must, measure)


def measure_probes(results: Results, arm: str) -> str:
    """Share of all steps that were probes."""
    return f"{results.column(arm, 'probes').sum() / results.column(arm, 'steps').sum():.3%}"


def measure_found(results: Results, arm: str) -> str:
    """Share of the bad samples that are quarantined at the end, and others that are."""
    bad = sum(case.faults.bad_samples for case in results.cases)
    found, wrongly = results.column(arm, "found").sum(), results.column(arm, "wrongly").sum()
    return f"{found / max(1, bad):.0%}; {wrongly:.0f} others"


def measure_healed(results: Results, arm: str) -> str:
    """Healed, of the runs in which the damage showed and there was something to go back to."""
    counted = results.column(arm, "counted")
    return f"{int(results.column(arm, 'healed')[counted > 0].sum())} of {int(counted.sum())}"


def measure_reached(results: Results, arm: str) -> str:
    """Poisonings after which training went on from the newest healthy state."""
    reached, shown = results.column(arm, "reached").sum(), results.column(arm, "shown").sum()
    return f"{int(reached)} of {int(shown)}" + (f", {reached / shown:.0%}" if shown else "")


def measure_told(results: Results, arm: str) -> str:
    """Of the runs with a restore, those in which a warning named the guard."""
    restored = results.column(arm, "restores") > 0
    says = results.column(arm, "says")[restored] > 0
    return f"{int(says.sum())} of {int(restored.sum())}"
