"""The page of a report: sections of charts and tables, light or dark like the screen of the reader."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from ..dashboard.event_text import describe_data
from ..dashboard.render.curves import grouped
from ..dashboard.render.svg import sparkline
from ..dashboard.state.view import View
from ..dashboard.text import clock, number, setting
from ..events.samples import count_text
from ..journal.run import Run, names_of
from ..journal.run_info import read_sessions, utc
from ..table.labels.suspects import MIRROR, Suspects
from .charts import (
    HALF,
    KINDS,
    flow_chart,
    held_out_losses,
    histogram,
    loss_chart,
    lr_chart,
    metric_chart,
    ribbon_chart,
    text,
)
from .data import ReportData, Row
from .gallery import GALLERY_STYLE, NO_LOOK, Look, gallery_of
from .incidents import incident_table
from .machine import machine_charts
from .numbers import (
    comparison,
    flow_numbers,
    histogram_numbers,
    loss_numbers,
    metric_numbers,
    opening,
    rate_numbers,
    ribbon_numbers,
)
from .overview import overview_panels, overview_tables
from .regions import REGION_STYLE, map_panels
from .style import STYLE, wide_table
from .suspects import suspect_table

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
    parts = [_header(data, data.run, title), _contents(sections), *sections, _footer(data, data.run)]
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
    yield _flow(data)
    yield from _pairs([*_glance(data, look), _uses(view), *_machine(view)])
    yield from _tables(data)
    yield _events(view)
    yield _configuration(data, run)


def _header(data: ReportData, folder: Run, title: str) -> str:
    run, state = data.view.run, folder.state()
    detail = f" <small>{text(state.detail)}</small>" if state.detail else ""
    what = "" if run is None else f"{describe_data(run)} · policy "
    what += text(run.policy, 40) if run is not None else ""
    return (
        f'<header><p class="brand">learnit::r8</p><h1>{title}</h1>'
        f'<p class="state {state.word}"><b>{state.word}</b>{detail}</p><p class="what">{what}</p></header>'
    )


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


def _flow(data: ReportData) -> str:
    if data.flow is None or not data.flow.moves.sum():
        return ""
    last = data.flow.moves[-1]
    down, up = (int(sum(last[i, j] for i in range(4) for j in range(4) if (j - i) * sign > 0)) for sign in (-1, 1))
    note = (
        "Samples moving between the quarters by loss, hardest on top. Bright: those that changed. "
        f"Over the last stretch {down:,} became easier than others and {up:,} harder."
    )
    chart = f'<div class="wide flow">{flow_chart(data.flow)}</div>'
    return panel("Moves between the quarters", chart + flow_numbers(data.flow), note)


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
        body = (
            f'<p class="big">{len(verdict.indices):,}</p>'
            f"<p>{count_text(len(verdict.indices), verdict.num_judged)}. An estimated {verdict.noise_rate:.1%} of all "
            f"labels are wrong (between {low:.1%} and {high:.1%}).{_precision(verdict)}</p>"
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


def _precision(verdict: Suspects) -> str:
    """The share of the list that is wrong, if there is a separate estimate of it."""
    if verdict.caution:
        return f" Of the list {verdict.caution}."
    return f" An estimated {verdict.precision:.0%} of the list are wrong." if verdict.method == MIRROR else ""


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


def _footer(data: ReportData, run: Run) -> str:
    notes = [f"could not be shown: {text(note)}" for note in data.notes[:5]]
    num_damaged = run.parser.num_damaged + data.view.num_left_out
    if num_damaged:
        notes.append(f"{num_damaged:,} lines of the journal could not be read and were skipped")
    when = utc(data.time) if math.isfinite(data.time) else "no record"
    notes.append(f"{text(run.folder)} · last record {when}")
    return f"<footer>{''.join(f'<p>{note}</p>' for note in notes)}</footer>"
