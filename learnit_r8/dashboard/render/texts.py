"""The pages of text: events, captured output, configuration, incidents."""

from __future__ import annotations

from collections.abc import Sequence

from ...events.incident import Incident
from ...events.text import clean, clock, counted
from ..state.ui_state import HEADER, RunRow, Scene, UiState, chosen_rows
from ..state.view import Entry, View
from ..text import Line, Span, clip, cropped, fit, remark, rule, spark, table_lines, wrapped
from ..theme import Glyphs, Theme

_STYLES = {"info": "", "good": "good", "warn": "warn", "alert": "alert"}
_TAGS = {"info": "     ", "good": "ok   ", "warn": "WARN ", "alert": "ALERT"}


def events_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The log of events, newest first; on its own page those that pass the filter."""
    is_page = ui.view == "events"
    wanted, found = ui.filter.lower() if is_page else "", view.alerts if is_page and ui.alerts_only else view.log
    entries = [entry for entry in reversed(found) if wanted in entry.text.lower()]
    note = f"{view.num_entries:,}, {counted(view.num_alerts, 'warning')}"
    if is_page and (ui.alerts_only or ui.filter):
        note = f"{len(entries):,} of {note}"
    lines = [rule("events", width, theme.glyphs, note)]
    room = height - 1
    first = min(ui.scroll, max(0, len(entries) - room)) if is_page else 0
    for entry in entries[first : first + room]:
        lines += opened_lines(entry, width) if is_page and ui.opened else [entry_line(entry, width, theme)]
    lines = lines[:height]
    if not entries:
        lines.append(remark("nothing yet" if not ui.filter else "none has that text"))
    return lines


def entry_line(entry: Entry, width: int, theme: Theme) -> Line:
    """One event: time, step, level, text."""
    when, step = f" {clock(entry.seconds):>8}", f"{entry.step:>9,} "
    text = clip(entry.text, max(0, width - len(when) - len(step) - 8), theme.glyphs.ellipsis)
    tag = Span(_TAGS[entry.level], _STYLES[entry.level])
    return cropped((Span(when, "label"), Span(f" {step}", "label"), tag, Span(" " + text)), width)


def opened_lines(entry: Entry, width: int) -> list[Line]:
    """One event with its whole text, on as many lines as it takes."""
    head = f" {clock(entry.seconds):>8}{entry.step:>9,}  "
    parts = wrapped(entry.text, max(1, width - len(head) - 6))
    first: Line = (Span(head, "label"), Span(_TAGS[entry.level] + " ", _STYLES[entry.level]), Span(parts[0]))
    return [cropped(line, width) for line in (first, *((Span(" " * (len(head) + 6) + part),) for part in parts[1:]))]


def output_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The captured lines of the program, newest last."""
    lines: Sequence[str] = scene.output
    if ui.filter:
        wanted = ui.filter.lower()
        lines = [line for line in lines if wanted in clean(line).lower()]
    title = rule("captured output", width, theme.glyphs, f"{scene.num_output:,} lines")
    if not lines:
        return [title, remark("nothing was printed" if not ui.filter else "no line has that text")]
    room = max(0, height - 1)
    last = len(lines) - min(ui.scroll, max(0, len(lines) - room))
    shown = lines[max(0, last - room) : last]
    return [title, *((Span(clip(clean(line, 4 * width), width, theme.glyphs.ellipsis)),) for line in shown)]


def config_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Configuration of the run, versions, and its folder."""
    run = view.run
    rows: list[tuple[str, str]] = []
    if run is not None:
        seconds = run.train_duration_seconds
        budget = f"as many as {seconds:g} s allow" if seconds else "until you ask for a cool-down or a stop"
        rows = [
            ("name", run.name or "-"),
            ("samples", run.data.replace(" samples in", " in")),
            ("steps", f"{run.total_steps:,}" if run.total_steps else budget),
            ("steps per epoch", f"{run.steps_per_epoch:,}" if run.steps_per_epoch else "as many as your loader gives"),
            *({"policy": run.policy} | run.settings).items(),
        ]
    if scene.folder:
        rows.append(("run folder", scene.folder))
    wanted = ui.filter.lower()
    rows = [(clean(name, 30), clean(value, 300)) for name, value in rows]
    rows = [row for row in rows if wanted in f"{row[0]} {row[1]}".lower()]
    label = min(26, max((len(name) for name, _ in rows), default=0) + 2, max(8, width // 3))
    lines = [rule("configuration", width, theme.glyphs, f"{len(rows)}")]
    shown: list[Line] = []
    for name, value in rows:
        for place, part in enumerate(wrapped(value, max(1, width - label - 2))):
            shown.append((Span("  " + fit("" if place else name, label), "label"), Span(part)))
    first = min(ui.scroll, max(0, len(shown) - (height - 1)))
    lines += shown[first : first + max(0, height - 1)]
    if not rows:
        lines.append(remark("not known yet" if not ui.filter else "none has that text"))
    return [cropped(line, width) for line in lines]


MOST_LISTED = 6
INDENT = 13

_INCIDENT_STYLES = {"open": "alert", "over": "good", "gave up": "alert"}


def incidents_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The incidents, newest first, and all of the selected one."""
    found = view.incidents[::-1]
    lines = [rule("incidents", width, theme.glyphs, f"{len(found)}, up and down choose" if found else "")]
    if not found:
        return [*lines, remark("no loss was refused so far, and nothing was found damaged")]
    chosen = min(ui.selected, len(found) - 1)
    room = max(1, min(MOST_LISTED, len(found), height // 3))
    first = max(0, min(chosen - room // 2, len(found) - room))
    for place in range(first, first + room):
        line = _listed(found[place], width, theme)
        lines.append((Span("".join(text for text, _ in line), "selected"),) if place == chosen else line)
    # Of the chosen one every text in full, what was tried last.
    incident = found[chosen]
    lines.append(rule(f"step {incident.step:,}", width, theme.glyphs, incident.state))
    what, *rest = incident.facts
    styles = {"what": "alert", "found": _INCIDENT_STYLES[incident.state]}
    styles["began"] = "alert" if incident.cause else "label"
    for label, said in (what, ("began", incident.began), *rest):
        lines += _part(label, said, width, styles.get(label, ""))
    for place, (step, text) in enumerate(incident.tried):
        lines += _part("tried" if not place else "", f"{step:,}: {text}", width)
    return [cropped(line, width) for line in lines[:height]]


def _listed(incident: Incident, width: int, theme: Theme) -> Line:
    when = f" {clock(incident.seconds):>8} {incident.step:>9,} "
    text = clip(clean(f"{incident.what}; {incident.done}"), max(0, width - len(when) - 9), theme.glyphs.ellipsis)
    return Span(when, "label"), Span(f"{incident.state:<8} ", _INCIDENT_STYLES[incident.state]), Span(text)


def _part(label: str, text: str, width: int, style: str = "") -> list[Line]:
    parts = enumerate(wrapped(clean(text, 1000), max(1, width - INDENT)))
    return [(Span(f"  {'' if place else label:<{INDENT - 2}}", "label"), Span(part, style)) for place, part in parts]


CURVE = 12
"""Cells of the course of a run in a list."""


def runs_table(rows: Sequence[RunRow], glyphs: Glyphs) -> list[tuple[str, ...]]:
    """The header of a list of runs, and a row for each."""
    courses = [(row.texts, spark(row.curve, CURVE, glyphs)) for row in rows]
    return [(*texts[:-1], course, texts[-1]) for texts, course in ((HEADER, "course"), *courses)]


def runs_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """A list of runs, one of them selected."""
    rows = chosen_rows(ui, scene.runs)
    note = f"{len(rows)} of {len(scene.runs)}, by {ui.sort}: s; Enter opens one"
    lines = [rule(f"runs in {clean(scene.folder, 60)}", width, theme.glyphs, note)]
    if not rows:
        return [*lines, remark("none has that text" if ui.filter else "no run here yet")]
    texts = list(table_lines(runs_table(rows, theme.glyphs), widest=max(12, width // 3)))
    lines.append((Span(" " + texts[0], "label"),))
    room, chosen = max(1, height - 2), min(ui.selected, len(rows) - 1)
    first = max(0, min(chosen - room // 2, len(rows) - room))
    for place in range(first, min(len(rows), first + room)):
        text = fit(" " + texts[place + 1], width)
        lines.append((Span(text, "selected" if place == chosen else RUN_STYLES.get(rows[place].texts[1], "")),))
    return [cropped(line, width) for line in lines]


RUN_STYLES = {"died": "alert", "diverged": "alert", "stalled": "alert", "stopped": "warn", "running": "good"}
