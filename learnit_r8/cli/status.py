"""``learnit-r8 status`` and ``ls``: a line for every run."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from ..dashboard.state.view import View
from ..dashboard.text import clean, clock, number
from ..events.codec import strict_json
from ..journal.run import Run, State, UnreadableRun, find_run, runs_folder, runs_in

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
        print(strict_json(_facts(run, view, state), non_finite=lambda value: None))
    else:
        print(line_of(run, view, state))
    return EXIT_CODES[state.word]


def ls(options: argparse.Namespace) -> int:
    """Print a line on every run in a folder."""
    parent = runs_folder() if options.run is None else Path(options.run)
    runs = runs_in(parent)
    if not runs:
        raise UnreadableRun(f"runs must be in {str(parent)!r}, got no run folder there.")
    for folder in runs[: options.top]:
        try:
            run = Run(folder)
            text = line_of(run, folded(run), run.state())
        except UnreadableRun as error:
            text = f"cannot be read: {error}"
        print(f"{clean(folder.name, 60)}  {clean(text)}")
    return 0


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
        parts += [f"loss {number(view.last.loss, 4)} (ema {number(view.ema, 4)})", f"lr {view.last.lr:.3g}"]
        if state.word == "running":
            left = view.time_left(view.seconds).seconds
            parts += [f"{number(view.pacing.samples_per_second)} samples/s", f"left {clock(left)}"]
    if view.incident is not None and state.word in ("running", "stalled"):
        parts.append("RECOVERING")
    return "  ".join(parts)


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
        "samples_per_second": view.pacing.samples_per_second,
        "metrics": {name: points[-1].value for name, points in view.metrics.items()},
    }
