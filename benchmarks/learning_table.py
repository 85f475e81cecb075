"""What the lines of benchmarks/learning.py say, as Markdown: paired differences, their errors, and what they mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from learning_tasks import TASKS

# isort: split
import numpy as np
from scipy.stats import t as student

LEVEL = 0.05
BASE = "shuffle"
Line = dict[str, Any]
Row = tuple[str, str, int]
"""Task, setting, per cent of the usual visits."""


class Paired(NamedTuple):
    """The mean of differences paired by seed, its standard error, and the p of "it is not below zero"."""

    mean: float
    error: float
    worse: float


def paired(differences: Sequence[float]) -> Paired:
    """Of at least one difference; a one-sided t test.

    >>> [round(value, 3) for value in paired([-1.0, -2.0, -3.0])]
    [-2.0, 0.577, 0.037]
    """
    count, mean = len(differences), statistics.mean(differences)
    if count < 2:
        return Paired(mean, math.nan, 1.0)
    error = statistics.stdev(differences) / math.sqrt(count)
    # Runs that are the same to the last bit have no spread, and are no worse.
    worse = float(student.cdf(mean / error, count - 1)) if error > 0 else float(mean >= 0)
    return Paired(mean, error, worse)


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several p values are significant together.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [True, False, False]
    """
    ranked = sorted(range(len(p_values)), key=p_values.__getitem__)
    significant = [False] * len(p_values)
    for rank, number in enumerate(ranked):
        if not p_values[number] < level / (len(p_values) - rank):
            break
        significant[number] = True
    return significant


class Results:
    """Lines by cell, in the order of the tasks, their settings, the budgets.

    Args:
        lines: As a run gives them, or packed.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self._cells: dict[Row, dict[str, list[Line]]] = {}
        for line in lines:
            for single in _single(line):
                row = (line["task"], line["setting"], line["budget"])
                self._cells.setdefault(row, {}).setdefault(line["method"], []).append(single)
        self.rows = sorted(self._cells, key=_place)

    def methods(self, row: Row) -> dict[str, list[Line]]:
        """The lines of a row by method."""
        return self._cells.get(row, {})

    def values(self, row: Row, method: str, what: str = "result") -> dict[int, Any]:
        """A value by seed."""
        return {line["seed"]: line[what] for line in self.methods(row).get(method, []) if what in line}

    def compared(self, row: Row, method: str, what: str = "result") -> list[float]:
        """Paired differences to the baseline, positive where better: points of accuracy, or per cent of the loss."""
        plain, ours = self.values(row, BASE, what), self.values(row, method, what)
        seeds = [seed for seed in ours if seed in plain]
        if TASKS[row[0]].is_loss:
            return [100 * (plain[seed] - ours[seed]) / plain[seed] for seed in seeds]
        return [ours[seed] - plain[seed] for seed in seeds]

    def curve(self, row: Row, method: str) -> list[float]:
        """The mean curve over the seeds; empty where there is none."""
        curves = [line["curve"] for line in self.methods(row).get(method, []) if line.get("curve")]
        return [] if not curves else [float(value) for value in np.mean(curves, axis=0)]


def _place(row: Row) -> tuple[int, int, int]:
    return list(TASKS).index(row[0]), list(TASKS[row[0]].settings).index(row[1]), row[2]


def _single(line: Line) -> Iterable[Line]:
    """A packed line as lines of one seed; the mean curve goes with each."""
    if not isinstance(line["seed"], list):
        yield line
        return
    for number, seed in enumerate(line["seed"]):
        lists = {name: line[name][number] for name in ("result", "rarest", "suspects") if name in line}
        yield line | {"seed": seed} | lists


def first_reached(curve: Sequence[float], target: float, *, is_loss: bool) -> float | None:
    """The share of the visits at which a curve first reaches a target, between its points; None where it never does.

    >>> first_reached([50, 70, 90, 100], 80, is_loss=False)
    0.625
    """
    sign = -1 if is_loss else 1
    before = None
    for number, value in enumerate(curve):
        if sign * value >= sign * target:
            inside = 1.0 if before is None else (target - before) / (value - before)
            return (number + inside) / len(curve)
        before = value
    return None


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first two columns to the left, the others to the right.

    >>> print(markdown(["a", "b", "c"], [["1", "2", "3"]]))
    | a | b | c |
    |---|---|--:|
    | 1 | 2 | 3 |
    """
    marks = ["---" if number < 2 else "--:" for number in range(len(head))]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(marks) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def worse_cells(results: Results) -> set[tuple[Row, str]]:
    """Rows and methods that are significantly worse than the baseline: Holm over a method's rows, clean ones apart."""
    families: dict[tuple[str, bool], list[tuple[Row, float]]] = {}
    for row in results.rows:
        for method in results.methods(row):
            differences = results.compared(row, method)
            if method != BASE and differences:
                family = families.setdefault((method, row[1] == "clean"), [])
                family.append((row, paired(differences).worse))
    return {
        (row, method)
        for (method, _), cells in families.items()
        for (row, _), significant in zip(cells, holm([p for _, p in cells]), strict=True)
        if significant
    }


def cell_text(differences: Sequence[float], mark: str = "") -> str:
    """Mean +- standard error; in bold where the mean is more than two errors above zero."""
    if not differences:
        return ""
    mean, error, _ = paired(differences)
    text = f"{mean:+.2f} ± {error:.2f}"
    return f"**{text}**" if not mark and mean > 2 * error > 0 else text + mark


def main_table(results: Results, methods: Sequence[str]) -> str:
    """Every row and method: the baseline's result and the differences to it."""
    worse = worse_cells(results)
    head = ["task, labels", "measure", "visits", "seeds", BASE, *methods]
    rows = []
    for row in results.rows:
        if set(results.methods(row)) <= {BASE}:
            continue
        rows.append(_line(results, row, methods, worse))
    return markdown(head, rows)


def _line(
    results: Results, row: Row, methods: Sequence[str], worse: set[tuple[Row, str]], what: str = "result"
) -> list[str]:
    task, setting, budget = row
    plain = list(results.values(row, BASE, what).values())
    is_loss = TASKS[task].is_loss
    cells = [
        cell_text(results.compared(row, method, what), " †" if (row, method) in worse else "") for method in methods
    ]
    measure = "% less loss" if is_loss else "points"
    shown = f"{statistics.mean(plain):.4f}" if is_loss else f"{statistics.mean(plain):.2f}"
    return [f"{task}, {setting}", measure, f"{budget} %", str(len(plain)), shown, *cells]


def rarest_table(results: Results, methods: Sequence[str]) -> str:
    """The rare classes alone."""
    rows = [
        _line(results, row, methods, set(), "rarest") for row in results.rows if results.values(row, BASE, "rarest")
    ]
    return markdown(["task, labels", "measure", "visits", "seeds", BASE, *methods], rows)


def visits_table(results: Results, methods: Sequence[str]) -> str:
    """Share of the baseline's visits after which each reaches the baseline's full-budget result."""
    rows = []
    for row in results.rows:
        plain, is_loss = results.curve(row, BASE), TASKS[row[0]].is_loss
        if row[2] != 100 or not plain or set(results.methods(row)) <= {BASE}:
            continue
        target = plain[-1] * 1.01 if is_loss else plain[-1] - 0.2
        own = first_reached(plain, target, is_loss=is_loss) or 1.0
        cells = []
        for method in methods:
            reached = first_reached(results.curve(row, method), target, is_loss=is_loss)
            is_known = bool(results.curve(row, method))
            cells.append(f"{reached / own:.2f} x" if reached else "never" if is_known else "")
        rows.append([f"{row[0]}, {row[1]}", f"{target:.4g}", f"{own:.2f}", *cells])
    return markdown(["task, labels", "target", BASE, *methods], rows)


def suspects_table(results: Results) -> str:
    """Area under the ROC curve, share flagged, precision and recall: mean and lowest to highest."""
    rows = []
    for row in results.rows:
        found: list[Mapping[str, float]] = list(results.values(row, BASE, "suspects").values())
        if found and not row[1].endswith("rates"):
            cells = [_spread([one[name] for one in found if name in one]) for name in _SUSPECTS]
            rows.append([row[0], row[1], str(len(found)), *cells])
    return markdown(["task", "labels", "seeds", *_SUSPECTS.values()], rows)


_SUSPECTS = {
    "auc": "area under the ROC curve",
    "auc_at_end": "the same at the end",
    "flagged": "flagged",
    "precision": "precision",
    "recall": "recall",
}


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})" if values else ""


def gap_table(results: Results, methods: Sequence[str]) -> str:
    """Wrong labels at full budget against a plain shuffle on the right labels of the same samples."""
    rows = []
    for row in results.rows:
        task, setting, budget = row
        clean = results.values((task, "clean", budget), BASE)
        if budget != 100 or "wrong" not in setting or set(results.methods(row)) <= {BASE} or not clean:
            continue
        cells = []
        for method in (BASE, *methods):
            ours = results.values(row, method)
            cells.append(cell_text([ours[seed] - clean[seed] for seed in ours if seed in clean]).replace("*", ""))
        rows.append([f"{task}, {setting}", f"{statistics.mean(clean.values()):.2f}", *cells])
    return markdown(["task, labels", "right labels", BASE, *methods], rows)
