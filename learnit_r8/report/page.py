"""The page of a run: its sections, from what went wrong to the configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..dashboard import watch
from ..dashboard.state.run_state import State
from ..dashboard.state.view import View
from ..dashboard.text import grouped
from ..events.incident import MOST_INCIDENTS
from ..events.text import clean, clock, number
from ..journal.run import Run, read_sessions, utc
from ..journal.samples import Samples, readable_samples, sample_epochs
from ..recovery.record import FOLDER, BadRecord, numbers_in, read_record
from . import samples
from .curves import fit_of, loss_section, metric_section, rate_section
from .document import Data, chart, curve, known, section, table
from .samples import NO_LOOK, Look

MOST_METRICS, MOST_EVENTS, MOST_CURVES = 12, 300, 8
MOST_LOSSES = 48
"""Losses around an incident that are drawn."""
LEVELS = {"open": "warn", "over": "good", "gave up": "alert"}


class ReportData(NamedTuple):
    """The content of a report.

    Attributes:
        run: The run folder, read to its end.
        view: The events, folded.
        state: The state of the run.
        notes: Reasons why something is not shown.
        samples: What the samples files say; None without any.
    """

    run: Run
    view: View
    state: State
    notes: list[str]
    samples: samples.SamplesData | None


def report_data(run_dir: str | os.PathLike[str], precision: float = 0.5) -> ReportData:
    """Read a run folder for a report.

    Args:
        run_dir: The folder.
        precision: As for `SampleTable.suspects`.

    Raises:
        UnreadableRun: the folder holds no run.
    """
    run, view, state = watch.look(run_dir)
    notes: list[str] = []
    files: list[Samples] = []
    # Of the newest data set.
    for each in readable_samples(run.folder, reversed(sample_epochs(run.folder)), notes):
        if files and len(each.loss) != len(files[0].loss):
            notes.append(f"epoch {each.epoch + 1} has {len(each.loss)} samples, the newest {len(files[0].loss)}")
            continue
        # A journal never writes infinities.
        values = {name: getattr(each, name) for name in ("loss", "last", "mean")}
        values = {name: np.where(np.isfinite(array), array, np.float32("nan")) for name, array in values.items()}
        files.append(each._replace(**values))
    of = samples.SamplesData.of(files[::-1], precision) if files else None
    return ReportData(run, view, state, notes, of)


def content_of(data: ReportData, look: Look = NO_LOOK) -> Data:
    """The data of the page: strict JSON but for NaN, with nothing that is no number, text, list or dict."""
    view, run, state, of = data.view, data.run, data.state, data.samples
    notes = [f"could not be shown: {clean(note)}" for note in data.notes[:5]]
    if num_damaged := run.num_damaged + view.num_left_out:
        notes.append(f"{num_damaged:,} lines of the journal could not be read and were skipped")
    ended = utc(view.heard) if math.isfinite(view.heard) else "no record"
    notes.append(f"{clean(run.folder)} · last record {ended}")
    first, later, classes = list[Data](), list[Data](), list[Data]()
    if of is not None:
        about, classes = [*samples.gallery(of, look), *samples.verdict(of)], [*samples.classes(of)]
        later = [*samples.suspects(of), *samples.hardest(of), *samples.map_section(of, look), *samples.overview(of)]
        # Who hands in pictures wants to look at them.
        first, later = (about, later) if look != NO_LOOK else ([], about + later)
    sections = [*_incidents(view, run.folder), *first, *_cards(view, ended)]
    sections += [*loss_section(view), *rate_section(view)]
    for title, names in list(grouped(view.metrics).items())[:MOST_METRICS]:
        sections.append(metric_section(view, names[0] if len(names) == 1 else title, names))
    sections += [
        *_groups(view), *_quarters(view), *later, *classes, *_events(view),
        *_configuration(data, run),
    ]  # fmt: skip
    what = "" if view.run is None else f"{view.run.data} · policy {clean(view.run.policy, 40)}"
    return {
        "title": clean(run.name, 80), "state": state.word, "detail": clean(state.detail), "what": what,
        "notes": notes, "sections": sections,
    }  # fmt: skip


def _incidents(view: View, folder: Path) -> Iterator[Data]:
    """The incidents, the newest first, with the losses around those that are recorded."""
    if not view.incidents:
        return
    losses: dict[int, list[float | None]] = {}
    for place in numbers_in(folder)[-MOST_INCIDENTS:]:
        try:
            record = read_record(folder / FOLDER / str(place))
        except (BadRecord, OSError):
            continue
        refusals = record["refusals"]
        before = refusals[0].get("losses_before") if refusals else None
        around = [*(before if isinstance(before, list) else []), *(each.get("loss") for each in refusals[:8])]
        losses[record["step"]] = known([each for each in around if isinstance(each, (int, float))][-MOST_LOSSES:])
    shown = []
    for each in reversed(view.incidents):
        shown.append({
            "level": LEVELS[each.state], "headline": clean(each.headline, 600), "losses": losses.get(each.step, []),
            "facts": [(name, clean(said, 1000)) for name, said in each.facts],
            "tried": [(step, clean(said)) for step, said in each.tried],
        })  # fmt: skip
    many = "incident" if len(shown) == 1 else "incidents"
    refused = f"{view.num_refused:,} {'loss' if view.num_refused == 1 else 'losses'} refused in all"
    yield section("Incidents", {"incidents": shown}, note=f"{len(shown):,} {many}, newest first; {refused}.")


def _cards(view: View, ended: str) -> Iterator[Data]:
    run, pacing = view.run, view.pacing
    total = f" of {run.total_steps:,}" if run is not None and run.total_steps else ""
    epochs = f"epoch {view.epoch + 1}" + (f" of {view.total_epochs}" if view.total_epochs else "")
    cards = [
        ("progress", f"{view.progress:.1%}", f"step {view.step:,}{total}, {epochs}"),
        ("training time", clock(view.seconds), f"{number(pacing.samples_per_second)} samples/s at the end"),
    ]
    last = view.last
    if view.gave_up is not None:
        healthy = f"smoothed, at step {last.step:,}; last batch {number(last.last_loss, 4)}" if last else ""
        cards.append(("last healthy loss", number(view.ema, 4), healthy))
        cards.append(("gave up", f"step {view.gave_up.step:,}", ended))
    else:
        cards.append(("loss", number(view.ema, 4), f"smoothed; last batch {number(last.last_loss, 4)}" if last else ""))
    if view.best is not None:
        cards.append(("best loss", number(view.best.value, 4), f"smoothed, at step {view.best.step:,}"))
    for name, metric in list(view.metrics.items())[:2]:
        values = [point.value for point in metric if math.isfinite(point.value)]
        span = f"{number(min(values), 4)} to {number(max(values), 4)}" if values else ""
        cards.append((clean(name, 40), number(metric[-1].value, 4), span))
    if math.isfinite(pacing.own_share):
        cards.append(("overhead", f"{pacing.own_share:.1%}", "of the training time, by the scheduler"))
    yield section("", {"cards": cards}, kind="bare")


def _groups(view: View) -> Iterator[Data]:
    """The groups of samples: the first curves of the list, and a row for each group."""
    groups = view.ranked_groups()
    if not groups:
        return
    shown = [(group, f"c{place % 6} d{place // 6}") for place, group in enumerate(groups[:MOST_CURVES])]
    series = [
        curve(group.name, [p.step for p in group.points], [p.value for p in group.points], look, dots=True)
        for group, look in shown
    ]
    more = {"from": 0, "to": float(max(1, view.step)), "ends": True, "fit": fit_of(series, view.step), "height": 250}
    rows = [
        [group.name, group.num_samples, group.mean, group.lowest, group.rise or "",
         {"spark": [p.value for p in group.points]}]
        for group in groups
    ]  # fmt: skip
    note = "Those first that have lost a tenth of their progress or more, then the highest losses."
    note += f" Curves: the first {len(series)} of {view.num_groups:,} groups." * (len(shown) < view.num_groups)
    columns = ("group", "samples", "mean loss", "lowest", "risen by", "over time")
    yield section(
        "Groups", chart("mean loss of groups over the steps", series, x_name="step", log=False, **more),
        table(columns, rows, kind="groups", tall=True), note=note,
    )  # fmt: skip


def _quarters(view: View) -> Iterator[Data]:
    if len(view.bounds) < 2:
        return
    steps, values = [each.step for each in view.bounds], np.array([each.values for each in view.bounds])
    bands = [
        {"name": f"Q{q}", "look": f"q{q}", "x": steps, "low": known(values[:, q - 1]), "high": known(values[:, q])}
        for q in (1, 2, 3, 4)
    ]  # fmt: skip
    can_log = bool((values[np.isfinite(values)] > 0).all())
    drawn = chart("loss ranges of the quarters over the steps", bands, x_name="step", log=can_log)
    yield section("Quarters by loss", drawn, note="Loss ranges of the four quarters of the samples.", kind="half")


def _events(view: View) -> Iterator[Data]:
    entries = list(view.log)[-MOST_EVENTS:][::-1]
    rows = [[clock(each.seconds), each.step, each.level.replace("info", ""), clean(each.text)] for each in entries]
    note = f"The newest {len(entries)} of {view.num_entries:,}, newest first; warnings and alerts: {view.num_alerts:,}."
    columns, levels = ("time", "step", "", "what happened"), [entry.level for entry in entries]
    if rows:
        yield section("Events", table(columns, rows, kind="events", tall=True, levels=levels), note=note)


def _configuration(data: ReportData, run: Run) -> Iterator[Data]:
    settings: dict[str, object] = dict(data.view.run.settings) if data.view.run is not None else {}
    about = run.about()
    for part in ("configuration", "versions"):
        given = about.get(part)
        settings |= given if isinstance(given, dict) else {}
    settings |= {name: about[name] for name in ("program", "platform") if name in about}
    for position, session in enumerate(read_sessions(run.folder)[-5:], start=1):
        settings[f"session {position}"] = f"{session.get('started_at')} on {session.get('host')}"
    rows = [[clean(name, 60), clean(str(value))] for name, value in settings.items()]
    if rows:
        yield section("Configuration", table(("", ""), rows, kind="settings"))
