"""The page of a report: sections of charts and tables, light or dark as the reader's screen is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from ..dashboard.view import View
from ..dashboard.words import clock, number
from ..journal.about import utc
from .axes import sparkline
from .charts import (
    flow_chart,
    histogram,
    loss_chart,
    lr_chart,
    map_chart,
    metric_chart,
    ribbon_chart,
    text,
)  # fmt: skip
from .gather import Facts, Row
from .style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever got into the page, a browser loads nothing and runs nothing."""
MOST_METRICS = 12
MOST_EVENTS = 300


def page(facts: Facts) -> str:
    """The whole page."""
    title = text(facts.name, 80)
    sections = [section for section in _sections(facts) if section]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} · learnit::r8</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join([_header(facts, title), *sections, _footer(facts)])
        + "\n</main></body></html>\n"
    )


def _sections(facts: Facts) -> Iterator[str]:
    view = facts.view
    yield _cards(view)
    if not view.loss.is_empty:
        yield _loss(view)
    yield _pair(_rate(view), *(_metric(view, name) for name in list(view.metrics)[:1]))
    more = [_metric(view, name) for name in list(view.metrics)[1:MOST_METRICS]]
    for start in range(0, len(more), 2):
        yield _pair(*more[start : start + 2])
    yield _pair(_ribbon(facts), _verdict(facts))
    yield _flow(facts)
    yield _pair(_map(facts), _uses(view))
    yield _table("Hardest samples", facts.hardest, _trust(facts))
    if facts.suspects:
        yield _table("Suspects", facts.suspects, "Samples that look mislabelled, most suspect first.")
    yield _events(view)
    yield _configuration(facts)


def _header(facts: Facts, title: str) -> str:
    view, state = facts.view, facts.state
    detail = f" <small>{text(state.detail)}</small>" if state.detail else ""
    run = view.run
    what = "" if run is None else (
        f"{run.num_samples:,} samples in batches of {run.batch_size:,} · policy {text(run.policy, 40)}"
    )  # fmt: skip
    return (
        f'<header><p class="brand">learnit::r8</p><h1>{title}</h1>'
        f'<p class="state {state.word}"><b>{state.word}</b>{detail}</p><p class="what">{what}</p></header>'
    )


def _cards(view: View) -> str:
    run, pacing = view.run, view.pacing
    total = f" of {run.total_steps:,}" if run is not None and run.total_steps else ""
    epochs = f"epoch {view.epoch + 1}" + (f" of {view.total_epochs}" if view.total_epochs else "")
    facts = [
        ("progress", f"{view.progress:.1%}", f"step {view.step:,}{total}, {epochs}"),
        ("training time", clock(view.seconds), f"{number(pacing.samples_per_second)} samples/s at the end"),
        (
            "loss",
            number(_short(view.ema)),
            f"smoothed; last batch {number(_short(view.last.loss))}" if view.last else "",
        ),
    ]
    if view.best is not None:
        facts.append(("best loss", number(_short(view.best.value)), f"smoothed, at step {view.best.step:,}"))
    for name, metric in list(view.metrics.items())[:2]:
        values = [point.value for point in metric if math.isfinite(point.value)]
        span = f"{number(_short(min(values)))} to {number(_short(max(values)))}" if values else ""
        facts.append((text(name, 40), number(_short(metric[-1].value)), span))
    share = pacing.own_share
    if math.isfinite(share):
        facts.append(("scheduler", f"{share:.1%}", "of the training time"))
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd><p>{more}</p></div>" for name, value, more in facts)
    return f'<dl class="cards">{cards}</dl>'


def _short(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else value


def _panel(title: str, body: str, note: str = "", kind: str = "") -> str:
    below = f'<p class="note">{note}</p>' if note else ""
    return f'<section class="panel {kind}"><h2>{title}</h2>{below}{body}</section>'


def _pair(*panels: str) -> str:
    shown = [panel for panel in panels if panel]
    return f'<div class="pair">{"".join(shown)}</div>' if shown else ""


def _loss(view: View) -> str:
    """Both scales in the page; which one shows is chosen without a script."""
    body = (
        '<input type="radio" name="scale" id="linear" checked><label for="linear">linear</label>'
        '<input type="radio" name="scale" id="log"><label for="log">log</label>'
        f'<div class="linear">{loss_chart(view, log=False)}</div><div class="log">{loss_chart(view, log=True)}</div>'
    )
    note = "Mean of the batches, and the lowest and highest of each stretch. Lines: what happened; point at them."
    return _panel("Loss", body, note, "scales")


def _rate(view: View) -> str:
    if view.lr.is_empty:
        return ""
    plan = "The rate as it was; dashed, as planned." if view.lr_plan else "The rate as it was."
    return _panel("Learning rate", lr_chart(view), plan)


def _metric(view: View, name: str) -> str:
    return _panel(text(name, 60), metric_chart(name, view.metrics[name], float(view.step)))


def _ribbon(facts: Facts) -> str:
    if len(facts.bounds) < 2:
        return ""
    legend = "".join(f'<span class="key q{quarter}">Q{quarter}</span>' for quarter in (1, 2, 3, 4))
    note = f"Loss ranges of the four quarters of the samples. {legend}"
    return _panel("Quarters by loss", ribbon_chart(facts.bounds), note)


def _uses(view: View) -> str:
    survey = view.survey
    if survey is None or not survey.uses_counts or not survey.loss_counts:
        return ""
    least, most = _ends(survey.uses_range)
    # Each bar in the middle of the numbers it stands for.
    wide = math.ceil((most - least + 1) / len(survey.uses_counts)) * len(survey.uses_counts)
    uses = histogram(survey.uses_counts, (least - 0.5, least - 0.5 + wide), "uses per sample")
    loss = histogram(survey.loss_counts, _ends(survey.loss_range), "loss per sample", log=survey.loss_is_log)
    note = "The outer bars of the losses hold what lies beyond, too."
    return _panel("How often, how hard", f"<h3>uses per sample</h3>{uses}<h3>loss per sample</h3>{loss}", note)


def _ends(ends: tuple[float, ...]) -> tuple[float, float]:
    return (float(ends[0]), float(ends[-1])) if ends else (0.0, 1.0)


def _flow(facts: Facts) -> str:
    if facts.flow is None or not facts.flow.moves.sum():
        return ""
    last = facts.flow.moves[-1]
    down, up = (int(sum(last[i, j] for i in range(4) for j in range(4) if (j - i) * sign > 0)) for sign in (-1, 1))
    note = (
        "Samples moving between the quarters by loss, hardest on top. Bright: those that changed. "
        f"Over the last stretch {down:,} became easier than others and {up:,} harder."
    )
    return _panel("Moves between the quarters", flow_chart(facts.flow), note)


def _map(facts: Facts) -> str:
    if facts.data_map is None:
        return ""
    which = "suspects" if facts.suspects else "the ten highest"
    note = (
        f"Every sample by its mean loss and how much it varied over {facts.data_map.num_epochs} epochs: easy ones "
        f"below, wavering ones at the right, hard or mislabelled ones at the upper left. Circles: {which}."
    )
    return _panel("Data map", map_chart(facts.data_map, facts), note)


def _verdict(facts: Facts) -> str:
    if facts.samples is None or facts.verdict is None:
        return ""
    verdict = facts.verdict
    if len(verdict.indices):
        low, high = verdict.noise_range
        body = (
            f'<p class="big">{len(verdict.indices):,}</p><p>samples look mislabelled: {verdict.noise_rate:.1%} '
            f"of those judged. Wrong are between {low:.1%} and {high:.1%}, by the same losses.</p>"
        )
    else:
        body = f"<p>No sample is called mislabelled: {text(verdict.reason)}</p>"
    seen = int((facts.samples.usage_count > 0).sum())
    uses = facts.samples.usage_count
    body += (
        f"<p>{seen:,} of {len(uses):,} samples were seen, {int(uses.min()):,} to {int(uses.max()):,} times each.</p>"
        f"<p>Losses of single samples: <b>{text(facts.samples.source, 40)}</b>. {_trust(facts)}</p>"
    )
    return _panel("What the samples say", body)


def _trust(facts: Facts) -> str:
    samples = facts.samples
    if samples is None:
        return ""
    if samples.is_exact:
        return "The loss of every sample was reported, so these numbers are exact."
    return "Only means were reported; what a single sample lost is an estimate, and the order of samples is rough."


def _table(title: str, rows: list[Row], note: str) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{row.number}</td><td>{text(row.name, 100)}</td>{_numbers((row.loss, row.last, row.mean))}"
        f"<td>{row.uses:,}</td><td>{sparkline(row.history)}</td>"
        f"<td>{'suspect: ' + text(row.why) if row.why else ''}</td></tr>"
        for row in rows
    )
    head = (
        "<tr><th>#</th><th>sample</th><th>loss</th><th>last</th><th>mean</th><th>uses</th><th>epochs</th><th></th></tr>"
    )
    return _panel(title, f'<div class="wide"><table class="samples"><thead>{head}</thead>{body}</table></div>', note)


def _numbers(values: Iterable[float]) -> str:
    return "".join(f"<td>{number(_short(value))}</td>" for value in values)


def _events(view: View) -> str:
    entries = list(view.log)[-MOST_EVENTS:]
    if not entries:
        return ""
    rows = "".join(
        f'<tr class="{entry.level}"><td>{clock(entry.seconds)}</td><td>{entry.step:,}</td>'
        f"<td>{entry.level if entry.level != 'info' else ''}</td><td>{text(entry.text, 400)}</td></tr>"
        for entry in reversed(entries)
    )
    note = f"The newest {len(entries)} of {view.num_entries:,}, newest first; {view.num_alerts:,} warnings and alerts."
    head = "<tr><th>time</th><th>step</th><th></th><th>what happened</th></tr>"
    return _panel("Events", f'<div class="wide tall"><table><thead>{head}</thead>{rows}</table></div>', note)


def _configuration(facts: Facts) -> str:
    settings: dict[str, object] = dict(facts.view.run.settings) if facts.view.run is not None else {}
    about = facts.about
    for part in ("configuration", "versions"):
        given = about.get(part)
        settings |= given if isinstance(given, dict) else {}
    settings |= {name: about[name] for name in ("program", "platform") if name in about}
    sessions = about.get("sessions")
    for position, session in enumerate(sessions[-5:] if isinstance(sessions, list) else [], start=1):
        if isinstance(session, dict):
            settings[f"session {position}"] = f"{session.get('started_at')} on {session.get('host')}"
    rows = "".join(f"<tr><th>{text(name, 60)}</th><td>{text(value)}</td></tr>" for name, value in settings.items())
    return _panel("Configuration", f'<div class="wide"><table class="settings">{rows}</table></div>') if rows else ""


def _footer(facts: Facts) -> str:
    notes = [f"could not be shown: {text(note)}" for note in facts.notes[:5]]
    if facts.num_damaged:
        notes.append(f"{facts.num_damaged:,} lines of the journal could not be read and are left out")
    when = utc(facts.time) if math.isfinite(facts.time) else "no record"
    notes.append(f"{text(facts.folder)} · last record {when}")
    return f"<footer>{''.join(f'<p>{note}</p>' for note in notes)}</footer>"
