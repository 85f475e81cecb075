"""``learnit-r8 status``, ``ls``, ``watch``, ``replay`` and ``ask``: runs from their folders, in lines or on screen."""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._validation import did_you_mean
from ..dashboard.live import why_plain
from ..dashboard.painter import Painter
from ..dashboard.render.frame import render
from ..dashboard.render.texts import runs_table
from ..dashboard.state.ui_state import UiState, chosen_rows
from ..dashboard.terminal.screen import Screen, TtyModes, UnusableTerminal, find_ground, screen_encoding
from ..dashboard.terminal.terminal_hooks import EndingSignals
from ..dashboard.text import table_lines
from ..dashboard.theme import ASCII, BRAILLE, choose_theme
from ..dashboard.watch import Replay, RunList, SeenRun, Watch, look, row_of, see
from ..events.codec import strict_json, to_json
from ..events.event import describe
from ..events.steps import is_lower_better
from ..events.text import clean, clock, number
from ..journal.requests import ask as write_request
from ..journal.run import NO_RUNS, UnreadableRun, find_run, is_run, read_about, runs_folder, runs_in
from ..schedules.span import read_span

EXIT_CODES = {"stalled": 3, "died": 4, "diverged": 4, "stopped": 5}
"""By the state of a run; 0 for every other one."""
SIZE = (120, 40)
FOLLOW_SECONDS = 0.5
LINE_SECONDS = 60.0
WAIT_SECONDS = 5.0
MOST_LISTED = 1000


def status(options: argparse.Namespace) -> int:
    """Print a line on a run.

    Returns:
        0 while it runs or when it has finished, 3 if it is stalled, 4 if it died or diverged, 5 if it was stopped
        before its end.
    """
    return _say(look(find_run(options.run), is_glance=True), as_json=options.json)


def ls(options: argparse.Namespace) -> int:
    """Print a line on every run in a folder."""
    parent, metric = runs_folder() if options.run is None else Path(options.run), options.sort
    runs = chosen_runs(parent, find=options.find, sort=metric, top=options.top)
    if options.json:
        print(strict_json([listed(folder, metric) for folder in runs], non_finite=lambda value: None))
        return 0
    glyphs = BRAILLE if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII
    records = [record_of(folder) for folder in runs]
    notes = ["; ".join(text for text in (each.get("notes"), each.get("tags")) if text) for each in records]
    table = runs_table([row_of(folder, metric) for folder in runs], glyphs)
    rows = [(*row, clean(said, 60)) for row, said in zip(table, ("notes", *notes), strict=True)]
    # Without any notes, no column for them.
    has_notes = any(row[-1] for row in rows[1:])
    print(*table_lines(rows if has_notes else [row[:-1] for row in rows]), sep="\n")
    return 0


def chosen_runs(parent: Path, *, find: str | None, sort: str | None, top: int) -> list[Path]:
    """The runs in a folder that a list shows, in its order: the newest first, or that with the best value of a metric.

    Raises:
        UnreadableRun: there is none, or none has the text or the metric.
    """
    runs = every = runs_in(parent)
    if not runs:
        raise UnreadableRun(NO_RUNS.format(str(parent)))
    if find:
        runs = []
        for run in every:
            record = record_of(run)
            # "lr=0.1" finds a value of config.
            texts = (f"{name.removeprefix('config.')}={text}" for name, text in record.items())
            if find.lower() in "\n".join([run.name, *record.values(), *texts]).lower():
                runs.append(run)
        if not runs:
            raise UnreadableRun(
                f"--find must be a text in the name, notes, tags or config of a run, got {find!r}, which none of the "
                f"{len(every)} in {str(parent)!r} has."
            )
    if sort:
        sign, values, known = 1.0 if is_lower_better(sort) else -1.0, dict[Path, float](), set[str]()
        for run in runs:
            with contextlib.suppress(UnreadableRun):
                view = look(run).view
                known |= view.metrics.keys()
                values |= {run: sign * view.bests[sort].value} if sort in view.bests else {}
        if not values:
            names = sorted(known)
            raise UnreadableRun(
                f"--sort must be a metric that a run has logged ({', '.join(names) or 'none'}), got {sort!r}."
                f"{did_you_mean(sort, names)}"
            )
        # Those without it come last.
        runs = sorted(runs, key=lambda run: values.get(run, math.inf))
    return runs[:top]


def record_of(folder: Path) -> dict[str, str]:
    """What the user recorded of a run: notes, tags, config, and the git commit; as texts."""
    known = read_about(folder).get("configuration")
    rows = known.items() if isinstance(known, dict) else ()
    return {name: str(value) for name, value in rows if name in ("notes", "tags", "git") or name.startswith("config.")}


def listed(folder: Path, metric: str | None = None) -> dict[str, Any]:
    """The facts of a run, or the reason why it cannot be read."""
    try:
        seen = look(folder, is_glance=metric is None)
    except UnreadableRun as error:
        return {"run": str(folder), "error": str(error)}
    facts = facts_of(seen)
    if metric:
        best = seen.view.bests.get(metric)
        facts["best"] = None if best is None else {"value": best.value, "step": best.step}
    return facts | {"record": record_of(folder)}


def line_of(seen: SeenRun) -> str:
    """One line on a run: name, state, progress, loss, rate, speed, time left."""
    run, view, state = seen
    parts = [clean(run.name, 60), state.word + (f" ({clean(state.detail, 100)})" if state.detail else "")]
    if view.run is not None:
        parts += [f"{view.progress:.1%}", f"epoch {view.epoch_text}", f"step {view.step_text}"]
    if view.last is not None:
        parts.append(f"loss {number(view.last.last_loss, 4)} (smoothed {number(view.ema, 4)})")
        parts += [f"lr {view.last.lr:.3g}"] if math.isfinite(view.last.lr) else []
        if state.word == "running":
            left = view.time_left(view.seconds)
            parts += [f"{number(view.pacing.samples_per_second)} samples/s", f"left {clock(left)}"]
    if state.word in ("running", "stalled"):
        parts += ["RECOVERING"] if view.incident is not None else []
        parts += [f"BACKUPS DO NOT OUTLIVE IT ({clean(view.backups_off, 100)})"] if view.backups_off else []
    return "  ".join(parts)


def _say(seen: SeenRun, *, as_json: bool) -> int:
    """Print a line on a run, or its facts as a JSON object; returns the exit code of its state."""
    print(strict_json(facts_of(seen), non_finite=lambda value: None) if as_json else line_of(seen))
    return EXIT_CODES.get(seen.state.word, 0)


def facts_of(seen: SeenRun) -> dict[str, Any]:
    """The facts of a run for programs."""
    (run, view, state), last = seen, seen.view.last
    left = view.time_left(view.seconds) if state.word == "running" else math.nan
    groups = [
        {"name": each.name, "samples": each.num_samples, "loss": each.mean, "rise": each.rise, "lowest": each.lowest}
        for each in view.ranked_groups()
    ]
    return {
        "run": str(run.folder), "name": run.name, "state": state.word, "detail": state.detail, "step": view.step,
        "total_steps": view.run.total_steps if view.run else None, "epoch": view.epoch, "progress": view.progress,
        "seconds": view.seconds, "seconds_left": left, "loss": last.last_loss if last else math.nan,
        "smoothed_loss": view.ema, "lr": last.lr if last else math.nan, "backups_off": view.backups_off or None,
        "samples_per_second": view.pacing.samples_per_second,
        "metrics": {name: points[-1].value for name, points in view.metrics.items()}, "groups": groups,
    }  # fmt: skip


def watch(options: argparse.Namespace) -> int:
    """Show a run while it goes on; without a terminal, follow it in plain lines.

    Returns:
        The exit code of ``status`` when the viewer is left.
    """
    folder = Path(options.run) if options.run else None
    if folder is not None and folder.is_dir() and not is_run(folder) and runs_in(folder):
        return _watch_list(folder, options)
    owner = Watch(find_run(options.run))
    if options.once and options.json:
        _say(see(owner.run, owner.view), as_json=True)
    elif options.once:
        _print_once(owner, options, "watch")
    elif options.json or why_plain():
        _follow(owner, as_json=options.json)
    else:
        _show(owner, options, "watch")
    return EXIT_CODES.get(see(owner.run, owner.view).state.word, 0)


def _watch_list(folder: Path, options: argparse.Namespace) -> int:
    """Show a list of runs, and the one that the person opens, until the person leaves the list."""
    if options.json or (not options.once and why_plain()):
        options.top, options.sort, options.find = MOST_LISTED, None, None
        return ls(options)
    ui = UiState(mode="list")
    while True:
        owner = RunList(folder)
        if options.once:
            owner.events()
            return _print_once(owner, options, "list")
        painter = _show(owner, options, "list", ui)
        rows = chosen_rows(painter.ui, owner.rows) if painter is not None else []
        if painter is None or not painter.opened or not rows:
            return 0
        ui = painter.ui
        _show(Watch(rows[min(ui.selected, len(rows) - 1)].folder), options, "watch")


def replay(options: argparse.Namespace) -> int:
    """Show a run again; without a terminal, print its last picture."""
    owner = Replay(find_run(options.run), to_step=options.to)
    if options.once or options.json or why_plain():
        owner.jump()
        _say(see(owner.run, owner.view), as_json=True) if options.json else _print_once(owner, options, "replay")
    else:
        _show(owner, options, "replay")
    return 0


def _show(owner: Any, options: argparse.Namespace, mode: str, ui: UiState | None = None) -> Painter | None:
    """Draw on the terminal until the person leaves; None where there is no screen."""
    ui = ui or UiState(mode=mode, view=options.view)
    painter = Painter(Screen(choose_theme(encoding=screen_encoding(), ground=find_ground()), TtyModes()), owner, ui)
    try:
        with EndingSignals(), _drawing(), contextlib.suppress(KeyboardInterrupt):
            painter.run()
        return painter
    except UnusableTerminal as error:
        print(f"learnit-r8 {mode}: plain lines, no screen: {clean(error)}", file=sys.stderr)
        _follow(owner) if mode == "watch" else _print_once(owner, options, mode)
        return None


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Turn errors of drawing, which odd numbers in a run cause, into UnreadableRun."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (ArithmeticError, LookupError, TypeError) as error:
        raise UnreadableRun(f"run must hold numbers that can be drawn, got {error!r}.") from error


def _print_once(owner: Any, options: argparse.Namespace, mode: str) -> int:
    """Print one picture as text without colours."""
    terminal = shutil.get_terminal_size(SIZE)
    width, height = min(options.width or terminal.columns, 500), min(options.height or terminal.lines, 300)
    theme = choose_theme(encoding=sys.stdout.encoding or "ascii")
    with _drawing():
        lines = render(owner.view, UiState(mode=mode, view=options.view), width, height, theme, owner.scene())
    for line in lines:
        print("".join(span.text for span in line).rstrip())
    return 0


def _follow(owner: Watch, *, as_json: bool = False) -> None:
    """Print a line for every event and every minute until the run ends; as JSON, every event and nothing else."""
    seen, due, said = see(owner.run, owner.view), -math.inf, ""
    with contextlib.suppress(KeyboardInterrupt):
        while seen.state.word in ("running", "stalled", "empty"):
            if time.monotonic() >= due and not as_json:
                print(said := line_of(seen), flush=True)
                due = time.monotonic() + LINE_SECONDS
            time.sleep(FOLLOW_SECONDS)
            for event in owner.events():
                owner.view.fold(event)
                words = describe(event)
                if as_json:
                    print(to_json(event), flush=True)
                elif words is not None:
                    print(f"step {event.step}: {words.text}", flush=True)
                    due, said = time.monotonic() + LINE_SECONDS, ""
            seen = see(owner.run, owner.view)
    # What the last line has said already is not said again.
    if line_of(seen) != said and not as_json:
        print(line_of(seen), flush=True)


def ask(options: argparse.Namespace) -> int:
    """Write a request into the folder of a run, and wait until the run has read it.

    Returns:
        0 when it was read, 3 if that took longer than some seconds.
    """
    kind, length = options.kind, options.length
    is_read = wait_for(find_run(options.run), kind, length, options.until)
    if options.json:
        print(strict_json({"request": kind, "is_read": is_read}))
        return 0 if is_read else 3
    over = "" if length is None else f" over {read_span('--for', length)}"
    if over and length.strip().isdigit():
        over += f" (a time needs a unit, as in --for {length.strip()}min)"
    said = "the run has read it and answers after its step" if is_read else "not read yet; the request stays there"
    print(f"{kind}{over}: {said}")
    return 0 if is_read else 3


def wait_for(folder: Path, kind: str, length: str | None, until: str | None) -> bool:
    """Ask the run in a folder for something; see `journal.requests.ask`.

    Returns:
        Whether it has read the request within some seconds; if not, the request stays.
    """
    path = write_request(folder, kind, length=length, until=until)
    end = time.monotonic() + WAIT_SECONDS
    while path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return not path.exists()
