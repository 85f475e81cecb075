"""``learnit-r8 status`` and ``ls``: a line for every run."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from .._validation import did_you_mean
from ..dashboard.render.parts import spark
from ..dashboard.state.ui_state import HEADER
from ..dashboard.state.view import View
from ..dashboard.text import table_lines
from ..dashboard.theme import ASCII, BRAILLE
from ..dashboard.watch import COURSE, row_of, view_of
from ..events.codec import strict_json
from ..events.steps import is_lower_better
from ..events.text import clean, clock, number
from ..journal.run import NO_RUNS, Run, State, UnreadableRun, find_run, runs_folder, runs_in
from ..journal.run_info import read_json

EXIT_CODES = {
    "running": 0,
    "finished": 0,
    "finished early": 0,
    "empty": 0,
    "stalled": 3,
    "died": 4,
    "diverged": 4,
    "stopped": 5,
}


def status(options: argparse.Namespace) -> int:
    """Print a line on a run.

    Returns:
        0 while it runs or when it has finished, 3 if it is stalled, 4 if it died or diverged, 5 if it was stopped
        before its end.
    """
    run = Run(find_run(options.run))
    view = folded(run)
    state = run.state()
    if options.json:
        print_facts(run, view)
    else:
        print(line_of(run, view, state))
    return EXIT_CODES[state.word]


def ls(options: argparse.Namespace) -> int:
    """Print a line on every run in a folder."""
    parent = runs_folder() if options.run is None else Path(options.run)
    runs = chosen_runs(parent, find=options.find, sort=options.sort, top=options.top)
    if options.json:
        print(strict_json([listed(folder, options.sort) for folder in runs], non_finite=lambda value: None))
        return 0
    rows = []
    for folder in runs:
        record = record_of(folder)
        said = "; ".join(text for text in (record.get("notes", ""), record.get("tags", "")) if text)
        row = row_of(folder)
        course = spark(row.curve, COURSE, BRAILLE if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII)
        best = _whole_view(folder).bests.get(options.sort) if options.sort else None
        found = ("-", "-") if best is None else (number(best.value, 4), f"{best.step:,}")
        rows.append((*row.texts[:-1], course, row.texts[-1], *(found if options.sort else ()), clean(said, 60)))
    header = (
        *HEADER[:-1],
        "course",
        HEADER[-1],
        *([f"best {clean(options.sort, 30)}", "at step"] if options.sort else []),
        "notes",
    )
    # Without any notes, no column for them.
    shown = len(header) if any(row[-1] for row in rows) else len(header) - 1
    print(*table_lines([header[:shown], *(row[:shown] for row in rows)]), sep="\n")
    return 0


def chosen_runs(parent: Path, *, find: str | None, sort: str | None, top: int) -> list[Path]:
    """The runs in a folder that a list shows, in its order: the newest first, or that with the best value of a metric.

    Raises:
        UnreadableRun: there is none, or none has the text or the metric.
    """
    runs = runs_in(parent)
    if not runs:
        raise UnreadableRun(NO_RUNS.format(str(parent)))
    if find:
        said = {}
        for run in runs:
            record = record_of(run)
            # "lr=0.1" finds a value of config.
            values = (f"{name.removeprefix('config.')}={text}" for name, text in record.items())
            said[run] = "\n".join([run.name, *record.values(), *values]).lower()
        runs, number_of_all = [run for run in runs if find.lower() in said[run]], len(runs)
        if not runs:
            raise UnreadableRun(
                f"--find must be a text in the name, notes, tags or config of a run, got {find!r}, which none of the "
                f"{number_of_all} in {str(parent)!r} has."
            )
    return (_sorted(runs, sort) if sort else runs)[:top]


def _sorted(runs: list[Path], metric: str) -> list[Path]:
    """Runs by the best value of a metric, the best first; those without it last.

    Raises:
        UnreadableRun: none has it.
    """
    views = {run: _whole_view(run) for run in runs}
    sign = 1.0 if is_lower_better(metric) else -1.0
    values = {run: sign * view.bests[metric].value for run, view in views.items() if metric in view.bests}
    if not values:
        names = sorted({name for view in views.values() for name in view.metrics})
        raise UnreadableRun(
            f"--sort must be a metric that a run has logged ({', '.join(names) or 'none'}), got {metric!r}."
            f"{did_you_mean(metric, names)}"
        )
    return sorted(values, key=values.__getitem__) + [run for run in runs if run not in values]


def _whole_view(folder: Path) -> View:
    """The view of a run from all its records, as the best value may be in any; an empty one where none can be read."""
    try:
        return view_of(Run(folder))
    except UnreadableRun:
        return View()


def record_of(folder: Path) -> dict[str, str]:
    """What the user recorded of a run: notes, tags, config, and the git commit; as texts."""
    try:
        configuration = read_json(folder / "run.json").get("configuration")
    except (OSError, ValueError):
        return {}
    known = configuration if isinstance(configuration, dict) else {}
    wanted = {name: str(value) for name, value in known.items() if name in ("notes", "tags", "git")}
    return wanted | {name: str(value) for name, value in known.items() if name.startswith("config.")}


def listed(folder: Path, metric: str | None = None) -> dict[str, Any]:
    """The facts of a run, or the reason why it cannot be read."""
    try:
        run = Run(folder)
        best = _whole_view(folder).bests.get(metric) if metric else None
        more = {"best": None if best is None else {"value": best.value, "step": best.step}} if metric else {}
        return {**facts_of(run, folded(run), run.state()), **more, "record": record_of(folder)}
    except UnreadableRun as error:
        return {"run": str(folder), "error": str(error)}


def folded(run: Run) -> View:
    """The state of a run from a selection of its records."""
    view = View()
    for record in run.glance():
        view.fold(record.event)
    return view


def line_of(run: Run, view: View, state: State) -> str:
    """One line on a run: name, state, progress, loss, rate, speed, time left."""
    parts = [clean(run.name, 60), state.word + (f" ({clean(state.detail, 100)})" if state.detail else "")]
    if view.run is not None:
        parts += [f"{view.progress:.1%}", f"epoch {view.epoch_text}", f"step {view.step_text}"]
    if view.last is not None:
        parts.append(f"loss {number(view.last.last_loss, 4)} (smoothed {number(view.ema, 4)})")
        parts += [f"lr {view.last.lr:.3g}"] if math.isfinite(view.last.lr) else []
        if state.word == "running":
            left = view.time_left(view.seconds).seconds
            parts += [f"{number(view.pacing.samples_per_second)} samples/s", f"left {clock(left)}"]
    if view.incident is not None and state.word in ("running", "stalled"):
        parts.append("RECOVERING")
    if view.backups_off and state.word in ("running", "stalled"):
        parts.append(f"BACKUPS DO NOT OUTLIVE IT ({clean(view.backups_off, 100)})")
    return "  ".join(parts)


def print_facts(run: Run, view: View) -> None:
    """Print the facts of a run as a JSON object."""
    print(strict_json(facts_of(run, view, run.state()), non_finite=lambda value: None))


def facts_of(run: Run, view: View, state: State) -> dict[str, Any]:
    """The facts of a run for programs."""
    return {
        "run": str(run.folder),
        "name": run.name,
        "state": state.word,
        "detail": state.detail,
        "step": view.step,
        "total_steps": view.run.total_steps if view.run else None,
        "epoch": view.epoch,
        "progress": view.progress,
        "seconds": view.seconds,
        "seconds_left": view.time_left(view.seconds).seconds if state.word == "running" else math.nan,
        "loss": view.last.last_loss if view.last else math.nan,
        "smoothed_loss": view.ema,
        "lr": view.last.lr if view.last else math.nan,
        "backups_off": view.backups_off or None,
        "samples_per_second": view.pacing.samples_per_second,
        "metrics": {name: points[-1].value for name, points in view.metrics.items()},
        "groups": [
            {
                "name": each.name,
                "samples": each.num_samples,
                "loss": each.mean,
                "rise": each.rise,
                "lowest": min(point.value for point in each.points),
            }
            for each in view.ranked_groups()
        ],
    }
