"""The page of a report: sections of charts and tables, light or dark like the screen of the reader."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..dashboard.render.svg import circle, frame, grid, label, line, range_of, sparkline, svg
from ..dashboard.state.view import View
from ..dashboard.text import grouped, setting
from ..events import MachineLoad
from ..events.incident import MOST_INCIDENTS, Incident
from ..events.samples import count_text
from ..events.text import clock, number, share
from ..journal.run import Run, names_of
from ..journal.run_info import read_sessions, utc
from ..recovery.incidents.record import FOLDER, BadRecord, numbers_in, read_record
from ..table.labels.suspects import MIRROR
from .charts import (
    HALF,
    KINDS,
    held_out_losses,
    histogram,
    loss_chart,
    lr_chart,
    metric_chart,
    ribbon_chart,
    text,
)
from .data import ReportData, Row, confusion_of, label_text
from .gallery import GALLERY_STYLE, NO_LOOK, Look, confusion_table, gallery_of, suspect_table
from .regions import REGION_STYLE, map_panels
from .style import (
    STYLE,
    comparison,
    histogram_numbers,
    loss_numbers,
    metric_numbers,
    opening,
    rate_numbers,
    ribbon_numbers,
    wide_table,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser loads and runs nothing, whatever the text of the run."""
PICTURES = "; img-src data:"
"""What a page with pictures allows besides: those that it holds itself."""
MOST_METRICS = 12
MOST_EVENTS = 300


def page(data: ReportData, look: Look = NO_LOOK, other: ReportData | None = None) -> str:
    """The whole page; with another run, compared with it."""
    assert data.run is not None
    title = text(data.run.name, 80)
    sections = [section for section in _sections(data, data.run, look) if section]
    if other is not None:
        assert other.run is not None
        names = names_of([data.run, other.run])
        body = comparison((data.view, other.view), names)
        sections.insert(1, panel("Comparison", body, "The better figure is in bold; settings only where they differ."))
    run, state = data.view.run, data.run.state()
    detail = f" <small>{text(state.detail)}</small>" if state.detail else ""
    what = "" if run is None else f"{run.data} · policy "
    what += text(run.policy, 40) if run is not None else ""
    notes = [f"could not be shown: {text(note)}" for note in data.notes[:5]]
    num_damaged = data.run.parser.num_damaged + data.view.num_left_out
    if num_damaged:
        notes.append(f"{num_damaged:,} lines of the journal could not be read and were skipped")
    when = utc(data.time) if math.isfinite(data.time) else "no record"
    notes.append(f"{text(data.run.folder)} · last record {when}")
    parts = [
        f'<header><p class="brand">learnit::r8</p><h1>{title}</h1>'
        f'<p class="state {state.word}"><b>{state.word}</b>{detail}</p><p class="what">{what}</p></header>',
        _contents(sections),
        *sections,
        f"<footer>{''.join(f'<p>{note}</p>' for note in notes)}</footer>",
    ]
    return _samples_document(title, parts, look)


def samples_page(data: ReportData, look: Look) -> str:
    """The page of the samples alone, as a notebook shows it."""
    sections = [*_pairs([*_glance(data, look), _verdict(data)]), *_tables(data)]
    return _samples_document("samples", [_contents(sections), *sections], look)


def _samples_document(title: str, parts: Sequence[str], look: Look) -> str:
    return document(title, parts, GALLERY_STYLE + REGION_STYLE, POLICY + PICTURES * (look.thumbnail is not None))


def document(title: str, parts: Sequence[str], style: str, policy: str = POLICY) -> str:
    """A whole page, which loads nothing; ``style`` follows that of all pages."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} · learnit::r8</title>\n<style>{STYLE}{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _sections(data: ReportData, run: Run, look: Look) -> Iterator[str]:
    view = data.view
    incidents, count = incident_table(view, run.folder)
    if incidents:
        yield panel("Incidents", incidents, count)
    yield _cards(view)
    if not view.loss.is_empty:
        yield _loss(view)
    groups = list(grouped(view.metrics).items())[:MOST_METRICS]
    panels = [_rate(view), *(_metric(view, title, names) for title, names in groups), _ribbon(data), _verdict(data)]
    yield from _pairs(panels)
    for title, body, note in gallery_of(data, look):
        yield panel(title, body, note)
    if data.suspects and data.verdict is not None:
        body, note = suspect_table(data.suspects, len(data.verdict.indices))
        yield panel("Suspects", body, note)
    yield _table("Hardest samples", data.hardest, _trust(data))
    yield from _pairs([*_glance(data, look), _uses(view), *_machine(view)])
    yield from _tables(data)
    yield _events(view)
    yield _configuration(data, run)


def _cards(view: View) -> str:
    run, pacing = view.run, view.pacing
    total = f" of {run.total_steps:,}" if run is not None and run.total_steps else ""
    epochs = f"epoch {view.epoch + 1}" + (f" of {view.total_epochs}" if view.total_epochs else "")
    cards = [
        ("progress", f"{view.progress:.1%}", f"step {view.step:,}{total}, {epochs}"),
        ("training time", clock(view.seconds), f"{number(pacing.samples_per_second)} samples/s at the end"),
        ("loss", number(view.ema, 4), f"smoothed; last batch {number(view.last.last_loss, 4)}" if view.last else ""),
    ]
    if view.best is not None:
        cards.append(("best loss", number(view.best.value, 4), f"smoothed, at step {view.best.step:,}"))
    for name, metric in list(view.metrics.items())[:2]:
        values = [point.value for point in metric if math.isfinite(point.value)]
        span = f"{number(min(values), 4)} to {number(max(values), 4)}" if values else ""
        cards.append((text(name, 40), number(metric[-1].value, 4), span))
    share = pacing.own_share
    if math.isfinite(share):
        cards.append(("overhead", f"{share:.1%}", "of the training time, by the scheduler"))
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd><p>{more}</p></div>" for name, value, more in cards)
    return f'<dl class="cards">{body}</dl>'


def panel(title: str, body: str, note: str = "", kind: str = "") -> str:
    """A section with its title, a note and a body."""
    below = f'<p class="note">{note}</p>' if note else ""
    name = _anchor(title)
    return f'<section class="panel {kind}" id="{name}"><h2>{title}</h2>{below}{body}</section>'


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _contents(sections: list[str]) -> str:
    """Links to the sections, with the titles of those that are there."""
    found = re.findall(r'<section class="[^"]*" id="([^"]*)"><h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in found)
    return f'<nav aria-label="contents">{links}</nav>'


def _pairs(panels: Sequence[str]) -> Iterator[str]:
    """Lay out panels of half the width in pairs."""
    shown = [panel for panel in panels if panel]
    for start in range(0, len(shown), 2):
        yield f'<div class="pair">{"".join(shown[start : start + 2])}</div>'


def _loss(view: View) -> str:
    """Both scales of the loss; radio buttons choose one without a script."""
    body = (
        '<input type="radio" name="scale" id="linear" checked><label for="linear">linear</label>'
        '<input type="radio" name="scale" id="log"><label for="log">log</label>'
        f'<div class="linear">{_loss_charts(view, log=False)}</div>'
        f'<div class="log">{_loss_charts(view, log=True)}</div>{loss_numbers(view)}'
    )
    note = "Mean of the batches, and the lowest and highest of each stretch. Lines mark events; hover to read them."
    for name in held_out_losses(view):
        best = view.bests.get(name)
        at = f", best {number(best.value, 4)} at step {best.step:,} (ring)" if best is not None else ""
        note += f' <span class="key held">{text(name, 40)}{at}</span>'
    return panel("Loss", body, note, "scales")


def _loss_charts(view: View, *, log: bool) -> str:
    """The chart for a wide page and the one for a phone, of which the style sheet shows one."""
    wide, narrow = loss_chart(view, log=log), loss_chart(view, log=log, width=HALF)
    return f'<div class="desk">{wide}</div><div class="phone">{narrow}</div>'


def _rate(view: View) -> str:
    if view.lr.is_empty:
        return ""
    plan = "The rate as it was; dashed, as planned." if view.lr_plan else "The rate as it was."
    return panel("Learning rate", lr_chart(view) + rate_numbers(view), plan)


def _metric(view: View, title: str, names: Sequence[str]) -> str:
    """Metrics with one stem in one chart: those of training and of validation."""
    notes = []
    for place, name in enumerate(names):
        best = view.bests.get(name)
        at = f"best {number(best.value, 4)} at step {best.step:,}" if best is not None else ""
        called = f'<span class="key m{place % KINDS}">{text(name, 40)}</span> ' if len(names) > 1 else ""
        notes.append(called + at)
    title = names[0] if len(names) == 1 else title
    chart = metric_chart(view, title, names, float(view.step))
    return panel(text(title, 60), chart + metric_numbers(view, names), " ".join(notes))


def _ribbon(data: ReportData) -> str:
    if len(data.bounds) < 2:
        return ""
    legend = "".join(f'<span class="key q{quarter}">Q{quarter}</span>' for quarter in (1, 2, 3, 4))
    note = f"Loss ranges of the four quarters of the samples. {legend}"
    return panel("Quarters by loss", ribbon_chart(data.bounds) + ribbon_numbers(data), note)


def _uses(view: View) -> str:
    survey = view.survey
    if survey is None or not survey.uses_counts or not survey.loss_counts:
        return ""
    least, most = _ends(survey.uses_range)
    # Each bar is centred on its numbers.
    wide = math.ceil((most - least + 1) / len(survey.uses_counts)) * len(survey.uses_counts)
    uses = histogram(survey.uses_counts, (least - 0.5, least - 0.5 + wide), "uses per sample")
    loss = histogram(survey.loss_counts, _ends(survey.loss_range), "loss per sample", log=survey.loss_is_log)
    note = "The outermost bars of the losses include everything beyond them."
    return panel(
        "How often, how hard",
        f"<h3>uses per sample</h3>{uses}<h3>loss per sample</h3>{loss}{histogram_numbers(view)}",
        note,
    )


def _machine(view: View) -> Iterator[str]:
    """The load of the machine over the training time."""
    for title, chart, note, columns, rows in machine_charts(view):
        yield panel(title, chart + opening(columns, rows), note)


def _ends(ends: tuple[float, ...]) -> tuple[float, float]:
    return (float(ends[0]), float(ends[-1])) if ends else (0.0, 1.0)


def _glance(data: ReportData, look: Look) -> Iterator[str]:
    return (panel(*one) for one in (*map_panels(data, look), *overview_panels(data)))


def _tables(data: ReportData) -> Iterator[str]:
    return (panel(*one) for one in overview_tables(data))


def _verdict(data: ReportData) -> str:
    if data.samples is None or data.verdict is None:
        return ""
    verdict = data.verdict
    if len(verdict.indices):
        low, high = verdict.noise_range
        sure = f" An estimated {verdict.precision:.0%} of the list are wrong." if verdict.method == MIRROR else ""
        sure = f" Of the list {verdict.caution}." if verdict.caution else sure
        body = (
            f'<p class="big">{len(verdict.indices):,}</p>'
            f"<p>{count_text(len(verdict.indices), verdict.num_judged)}. An estimated {verdict.noise_rate:.1%} of all "
            f"labels are wrong (between {low:.1%} and {high:.1%}).{sure}</p>"
        )
    else:
        body = f"<p>No sample is called mislabelled: {text(verdict.reason)}</p>"
    if data.more_before:
        body += f"<p>The list is from the newest survey; there were {text(data.more_before)}.</p>"
    seen = int((data.samples.usage_count > 0).sum())
    uses = data.samples.usage_count
    body += (
        f"<p>{seen:,} of {len(uses):,} samples were seen, {int(uses.min()):,} to {int(uses.max()):,} times each.</p>"
        f"<p>Losses of single samples: <b>{text(data.samples.source, 40)}</b>. {_trust(data)}</p>"
    )
    return panel("What the samples say", body)


def _trust(data: ReportData) -> str:
    samples = data.samples
    if samples is None:
        return ""
    if samples.is_exact:
        return "The loss of every sample was reported, so these numbers are exact."
    return "Only means were reported, so the loss of a single sample is an estimate, and the order of samples is rough."


def _table(title: str, rows: Sequence[Row], note: str) -> str:
    if not rows:
        return ""
    body = (
        f"<tr><td>{row.number}</td><td>{text(row.name, 100)}</td><td>{number(row.loss, 4)}</td>"
        f"<td>{number(row.last, 4)}</td><td>{number(row.mean, 4)}</td><td>{row.uses:,}</td>"
        f"<td>{sparkline(row.history)}</td><td>{'suspect: ' + text(row.why) if row.why else ''}</td></tr>"
        for row in rows
    )
    columns = ("#", "sample", "loss", "last", "mean", "uses", "epochs", "")
    return panel(title, wide_table("samples", columns, body), note)


def _events(view: View) -> str:
    entries = list(view.log)[-MOST_EVENTS:]
    if not entries:
        return ""
    rows = (
        f'<tr class="{entry.level}" tabindex="0"><td>{clock(entry.seconds)}</td><td>{entry.step:,}</td>'
        f"<td>{entry.level if entry.level != 'info' else ''}</td><td>{text(entry.text, 400)}</td></tr>"
        for entry in reversed(entries)
    )
    note = f"The newest {len(entries)} of {view.num_entries:,}, newest first; warnings and alerts: {view.num_alerts:,}."
    columns = ("time", "step", "", "what happened")
    return panel("Events", wide_table("events", columns, rows, is_tall=True), note)


def _configuration(data: ReportData, run: Run) -> str:
    settings: dict[str, object] = dict(data.view.run.settings) if data.view.run is not None else {}
    about = run.about()
    for part in ("configuration", "versions"):
        given = about.get(part)
        settings |= given if isinstance(given, dict) else {}
    settings |= {name: about[name] for name in ("program", "platform") if name in about}
    for position, session in enumerate(read_sessions(run.folder)[-5:], start=1):
        settings[f"session {position}"] = f"{session.get('started_at')} on {session.get('host')}"
    texts = ((text(name, 60), text(setting(str(value)))) for name, value in settings.items())
    # With a focus, so that a phone, which shows two lines, shows all of a long value when it is touched.
    rows = "".join(f'<tr tabindex="0"><th>{name}</th><td>{value}</td></tr>' for name, value in texts)
    return panel("Configuration", f'<div class="wide"><table class="settings">{rows}</table></div>') if rows else ""


DRAWN = 48
"""Losses around an incident that are drawn."""

ENDS = {"open": "not settled", "over": "over", "gave up": "the run gave up"}


def incident_table(view: View, folder: Path) -> tuple[str, str]:
    """The incidents as a table, the newest first, and a sentence on them; "" twice without any.

    Args:
        view: The run.
        folder: Its folder, whose records hold the losses around them.
    """
    incidents = view.incidents
    if not incidents:
        return "", ""
    drawn = _losses_by_step(folder)
    rows = (_row(each, drawn.get(each.step, ())) for each in reversed(incidents))
    refused = f"{view.num_refused:,} {'loss' if view.num_refused == 1 else 'losses'} refused in all"
    count = f"{len(incidents):,} {'incident' if len(incidents) == 1 else 'incidents'}, newest first; {refused}."
    columns = ("time", "step", "epoch", "what happened", "done", "found")
    return wide_table("incidents", columns, rows), count


def _losses_by_step(folder: Path) -> dict[int, Sequence[float]]:
    """The losses before and after the first refusal of each recorded incident, by its step."""
    found: dict[int, Sequence[float]] = {}
    for number_ in numbers_in(folder)[-MOST_INCIDENTS:]:
        try:
            record = read_record(folder / FOLDER / str(number_))
        except (BadRecord, OSError):
            continue
        refusals = record["refusals"]
        before = refusals[0].get("losses_before", []) if refusals else []
        losses = [*before, *(each.get("loss") for each in refusals[:8])] if isinstance(before, list) else []
        found[record["step"]] = [float(each) for each in losses if isinstance(each, (int, float))][-DRAWN:]
    return found


def _row(incident: Incident, losses: Sequence[float]) -> str:
    what = f"{text(incident.reason, 120)}"
    if not math.isnan(incident.loss) or incident.num_refused:
        what = f"loss {number(incident.loss)}: {what}"
    if incident.samples:
        listed = ", ".join(map(str, incident.samples[:5])) + (", ..." if len(incident.samples) > 5 else "")
        what += f"; samples {listed}"
    counts = (
        (incident.num_refused, "refused"),
        (incident.num_probes, "drawn again"),
        (incident.num_restored, "restored"),
    )
    done = ", ".join(f"{count:,} {word}" for count, word in counts if count)
    cause = f"<p><b>{text(incident.cause, 600)}</b></p>" if incident.cause else ""
    cause += sparkline(losses)
    found = text(incident.diagnosis, 300) or ENDS.get(incident.state, "")
    tried = "".join(f"<li>step {step:,}: {text(said, 300)}</li>" for step, said in incident.tried)
    steps = f"<details><summary>{len(incident.tried)} events</summary><ol>{tried}</ol></details>" if tried else ""
    kind = "alert" if incident.state == "gave up" else "warn" if incident.state == "open" else "good"
    return (
        f'<tr class="{kind}" tabindex="0"><td>{clock(incident.seconds)}</td><td>{incident.step:,}</td>'
        f"<td>{incident.epoch + 1}</td><td>{what}</td><td>{done}{steps}</td><td>{cause}{found}</td></tr>"
    )


GB = 1e9
UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
MOST_DOTS = 128


class Panel(NamedTuple):
    """A chart with its note, and the columns and rows of its numbers."""

    title: str
    chart: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[float | str, ...]]


class Curve(NamedTuple):
    """A quantity of the machine: its name, and how it is read off a load; NaN where it is not known."""

    name: str
    read: Callable[[MachineLoad], float]


def machine_charts(view: View) -> Iterator[Panel]:
    """The panels of the machine; none where the run does not tell its load."""
    loads = list(view.loads)
    if not loads:
        return
    gpus = max(len(load.gpus) for load in loads)
    called = "the GPU" if gpus == 1 else f"{gpus} GPUs, mean"
    used = [
        Curve("all cores", lambda load: 100 * load.cpu),
        Curve("this process", lambda load: 100 * load.own_cpu / max(1, load.num_cpus)),
        Curve(called, lambda load: 100 * _over_gpus(load, 0) / max(1, len(load.gpus))),
    ]
    held = [
        Curve("in use", lambda load: load.used / GB),
        Curve("this process", lambda load: load.own / GB),
        Curve("the GPU" if gpus == 1 else f"{gpus} GPUs", lambda load: _over_gpus(load, 1) / GB),
    ]
    newest = loads[-1]
    sizes = [f"{number(newest.total / GB)} GB in all"] if math.isfinite(newest.total) else []
    if gpus and math.isfinite(_over_gpus(newest, 2)):
        sizes.append(f"{number(_over_gpus(newest, 2) / GB)} GB on {held[2].name}")
    note = f"GB; {', '.join(sizes)}. " if sizes else "GB. "
    for panel in (
        _panel("Use of the machine", loads, used, f"Percent of {newest.num_cpus} cores. ", 100.0),
        _panel("Memory of the machine", loads, held, note, 0.0),
    ):
        if len(panel.columns) > 1:
            yield panel


def _over_gpus(load: MachineLoad, place: int) -> float:
    """The sum of a quantity over the GPUs; NaN without any."""
    known = [gpu[place] for gpu in load.gpus if len(gpu) > place]
    return sum(known) if known else math.nan


def _panel(title: str, loads: list[MachineLoad], curves: list[Curve], note: str, top: float) -> Panel:
    seconds = [load.seconds for load in loads]
    size, unit = next(((size, unit) for size, unit in UNITS if seconds[-1] >= 2 * size), UNITS[-1])
    values = [[curve.read(load) for load in loads] for curve in curves]
    high = max(range_of([0.0, *(value for row in values for value in row)])[1], top)
    chart = frame(HALF, 220, (0.0, max(seconds[-1] / size, 1e-9)), (0.0, high * 1.02))
    parts = [grid(chart, x_name=unit, whole_x=False)]
    shown = [place for place, row in enumerate(values) if any(map(math.isfinite, row))]
    times = [second / size for second in seconds]
    for place in shown:
        parts.append(line(chart, times, values[place], f"metric m{place}"))
        for at, value in list(zip(times, values[place], strict=True))[:: max(1, -(-len(loads) // MOST_DOTS))]:
            if math.isfinite(value):
                said = f"{curves[place].name}, {clock(at * size)}: {number(value, 3)}"
                parts.append(circle(chart.x.at(at), chart.y.at(value), 2.0, f"dot m{place}", said))
    keys = " ".join(f'<span class="key m{place}">{curves[place].name}</span>' for place in shown)
    rows: list[tuple[float | str, ...]]
    rows = [(clock(seconds[at]), *(values[place][at] for place in shown)) for at in range(len(loads))]
    columns = ("training time", *(curves[place].name for place in shown))
    return Panel(title, svg(chart, parts, f"{title.lower()} over the training time"), note + keys, columns, rows)


MOST_CLASSES = 100
"""Classes in the table, those of the lowest accuracy."""

Part = tuple[str, str, str]
"""Title, body and note."""


def overview_panels(data: ReportData) -> Iterator[Part]:
    """The calibration of the model and when it learnt the samples; nothing without predictions."""
    if data.overview is not None:
        yield _calibration(data)
        known = data.overview.given >= 0
        learned, forgotten = data.overview.learned[known], data.overview.forgotten[known].astype(np.int64)
        never = float(np.isnan(learned).mean())
        charts = []
        for name, values in (
            ("first visit at which the label was predicted", learned[np.isfinite(learned)].astype(np.int64)),
            ("times it was forgotten", forgotten),
        ):
            if len(values):
                most = int(np.quantile(values, 0.995)) + 1
                counts = np.bincount(np.minimum(values, most))
                charts.append(f"<h3>{name}</h3>{histogram(tuple(counts.tolist()), (-0.5, most + 0.5), name)}")
        note = (
            f"The label of {share(never, 1)} of the samples was never predicted; that of "
            f"{share(float((forgotten > 0).mean()), 1)} was predicted at a visit and was not at the next. "
            "The outermost bars include everything beyond them."
        )
        yield ("Learnt when, forgotten how often", "".join(charts), note)


def overview_tables(data: ReportData) -> Iterator[Part]:
    """The tables that take the whole width; nothing without predictions."""
    overview, samples = data.overview, data.samples
    if overview is None or samples is None or data.verdict is None:
        return
    names = overview.names(samples.group, samples.group_labels)
    classes = sorted(overview.classes(data.verdict.indices, names), key=lambda one: one.accuracy)
    rows = (
        f"<tr><td>{text(one.label, 40)}</td><td>{one.size:,}</td><td>{share(one.accuracy, 1)}</td>"
        f"<td>{number(one.margin)}</td><td>{number(one.learned) if math.isfinite(one.learned) else 'never'}</td>"
        f"<td>{number(one.forgotten)}</td><td>{one.num_suspects:,}</td><td>{text(label_text(one.rival), 40)}</td></tr>"
        for one in classes[:MOST_CLASSES]
    )
    columns = ("label", "samples", "predicted", "mean margin", "learnt at visit", "forgotten", "suspects", "rival")
    shown = f"The {MOST_CLASSES} worst of {len(classes):,} classes" if len(classes) > MOST_CLASSES else "The classes"
    note = (
        f"{shown}, worst first. Predicted: the share of their samples whose label was predicted at the last visit, "
        "before the step. Learnt: the median of the first such visits. Forgotten: how often, on average, a sample's "
        "label was predicted at a visit and was not at the next. Rival: the class predicted most instead."
    )
    yield "Quality of each class", wide_table("classes", columns, rows, is_tall=True), note
    given, predicted, counts = overview.confusion()
    labels, others = ([label_text(names.get(one, one)) for one in side.tolist()] for side in (given, predicted))
    confusion = confusion_of(labels, others, counts.tolist())
    if confusion is not None:
        note = "Samples by the label they have and the other class that the model predicted at their last visit."
        yield "What the model confuses", confusion_table(confusion, "predicted"), note


def _calibration(data: ReportData) -> Part:
    """Return the reliability diagram of the end, and calibration over the kept epochs."""
    title = "Calibration"
    if not data.calibrations:
        reason = "the losses are not the cross entropies of the predictions, so how sure the model was is unknown"
        return title, f"<p>Not shown: {reason}.</p>", ""
    last = data.calibrations[-1][1]
    chart = frame(HALF, 220, (0.0, 1.0), (0.0, 1.0))
    known = last.counts > 0
    parts = [
        grid(chart, whole_x=False),
        line(chart, np.array([0.0, 1.0]), np.array([0.0, 1.0]), "plan"),
        line(chart, last.confidence[known], last.accuracy[known], "metric"),
    ]
    for count, sure, right in zip(last.counts, last.confidence, last.accuracy, strict=True):
        if count:
            words = f"{count:,} samples: {share(sure, 0)} sure, {share(right, 0)} right"
            parts.append(circle(chart.x.at(sure), chart.y.at(right), 3, "dot", words))
    parts.append(label(chart.x.end, chart.y.start - 6, "how sure", "label faint", anchor="end"))
    parts.append(label(chart.x.start + 6, chart.y.end + 10, "how often right", "label faint"))
    rows = [
        (epoch + 1, one.mean(one.confidence), one.mean(one.accuracy), one.error) for epoch, one in data.calibrations
    ]
    numbers = opening(("epoch", "mean confidence", "predicted right", "calibration error"), rows, "over the run")
    gap = last.mean(last.confidence) - last.mean(last.accuracy)
    word = "too sure" if gap > 0 else "not sure enough"
    note = (
        f"Every sample at its last visit, before the step: how sure the model was of the class it predicted, and how "
        f"often that was the label. On average it is {share(abs(gap), 1)} {word}; calibration error "
        f"{number(last.error, 2)}. These are samples that it was trained on; on new ones expect it to be worse."
    )
    return title, svg(chart, parts, "how often right by how sure") + _over_the_run(rows) + numbers, note


def _over_the_run(rows: list[tuple[int, float, float, float]]) -> str:
    """Mean confidence and accuracy over the kept epochs."""
    if len(rows) < 2:
        return ""
    epochs, sure, right, _ = (np.array(column, float) for column in zip(*rows, strict=True))
    chart = frame(HALF, 120, (float(epochs[0]), float(epochs[-1])), (0.0, 1.0))
    parts = [grid(chart, x_name="epoch"), line(chart, epochs, sure, "metric m1"), line(chart, epochs, right, "metric")]
    key = '<span class="key m1">how sure</span><span class="key m0">how often right</span>'
    return f'{svg(chart, parts, "confidence and accuracy over the epochs")}<p class="note">{key}</p>'
