"""``learnit-r8 status`` and ``ls``: a line for every run."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

from ..dashboard.state.view import View
from ..dashboard.text import clean, clock, number
from ..events.codec import strict_json
from ..journal.run import Run, State, UnreadableRun, find_run, runs_folder, runs_in, seconds_text
from .table import table_lines

EXIT_CODES = {"running": 0, "finished": 0, "empty": 0, "stalled": 3, "died": 4, "stopped": 5}


def status(options: argparse.Namespace) -> int:
    """Print a line on a run.

    Returns:
        0 while it runs or when it has finished, 3 if it is stalled, 4 if it died, 5 if it was stopped before its end.
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
    runs = runs_in(parent)
    if not runs:
        raise UnreadableRun(f"runs must be in {str(parent)!r}, got no run folder there.")
    if options.json:
        print(strict_json([_listed(folder) for folder in runs[: options.top]], non_finite=lambda value: None))
        return 0
    print(*table_lines([HEADER, *map(_columns, runs[: options.top])]), sep="\n")
    return 0


HEADER = ("run", "state", "done", "step", "loss", "written")


def _listed(folder: Path) -> dict[str, Any]:
    """The facts of a run, or the reason why it cannot be read."""
    try:
        run = Run(folder)
        return _facts(run, folded(run), run.state())
    except UnreadableRun as error:
        return {"run": str(folder), "error": str(error)}


def _columns(folder: Path) -> tuple[str, ...]:
    """A row of `ls`."""
    name = clean(folder.name, 60)
    try:
        run = Run(folder)
        view, state = folded(run), run.state()
        ago = f"{seconds_text(max(0.0, time.time() - os.stat(folder / 'events.jsonl').st_mtime))} ago"
    except (UnreadableRun, OSError) as error:
        return name, "unreadable", clean(error, 60), "", "", ""
    loss = number(view.ema, 4) if view.last is not None else "-"
    return name, state.word, f"{view.progress:.1%}", view.step_text, loss, ago


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
        parts += [f"loss {number(view.last.loss, 4)} (smoothed {number(view.ema, 4)})", f"lr {view.last.lr:.3g}"]
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
    print(strict_json(_facts(run, view, run.state()), non_finite=lambda value: None))


def _facts(run: Run, view: View, state: State) -> dict[str, Any]:
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
        "loss": view.last.loss if view.last else math.nan,
        "smoothed_loss": view.ema,
        "lr": view.last.lr if view.last else math.nan,
        "backups_off": view.backups_off or None,
        "samples_per_second": view.pacing.samples_per_second,
        "metrics": {name: points[-1].value for name, points in view.metrics.items()},
    }
