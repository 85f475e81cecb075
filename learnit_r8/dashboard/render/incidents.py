"""The page of incidents: what happened, why, what was tried, and the diagnosis."""

from __future__ import annotations

import math

from ..event_text import few
from ..state.incidents import Incident
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clean, clip, clock, counted, number, wrapped
from ..theme import Theme
from .header import Rows, titled
from .parts import cropped, remark, rule

MOST_LISTED = 6
INDENT = 13

_STYLES = {"open": "alert", "over": "good", "gave up": "alert"}


def incidents_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The incidents, newest first, and all of the selected one."""
    found = view.incidents.incidents[::-1]
    lines = [rule("incidents", width, theme.glyphs, f"{len(found)}, up and down choose" if found else "")]
    if not found:
        return [*lines, remark("no loss was refused so far, and nothing was found damaged")]
    chosen = min(ui.selected, len(found) - 1)
    room = max(1, min(MOST_LISTED, len(found), height // 3))
    first = max(0, min(chosen - room // 2, len(found) - room))
    for place in range(first, first + room):
        line = _listed(found[place], width, theme)
        lines.append((Span("".join(text for text, _ in line), "selected"),) if place == chosen else line)
    lines += _details(found[chosen], view, width, theme)
    return [cropped(line, width) for line in lines[:height]]


def _listed(incident: Incident, width: int, theme: Theme) -> Line:
    when = f" {clock(incident.seconds):>8} {incident.step:>9,} "
    counts = (
        f"{incident.num_refused} refused, {counted(incident.num_probes, 'probe')}, {incident.num_restored} restored"
    )
    text = clip(f"{clean(incident.reason)}; {counts}", max(0, width - len(when) - 9), theme.glyphs.ellipsis)
    return Span(when, "label"), Span(f"{incident.state:<8} ", _STYLES[incident.state]), Span(text)


def _details(incident: Incident, view: View, width: int, theme: Theme) -> list[Line]:
    """What happened, what was tried, and the diagnosis, every text in full."""
    lines = [rule(f"step {incident.step:,}, epoch {incident.epoch + 1}", width, theme.glyphs, incident.state)]
    rate = f" at the rate {number(incident.lr)}" if math.isfinite(incident.lr) else ""
    loss = f"loss {number(incident.loss)}{rate}" if incident.num_refused else "the weights"
    lines += _part("what", f"{loss}: {incident.reason}", width, "alert")
    usual = view.ema
    if math.isfinite(usual) and math.isfinite(incident.loss):
        lines += _part("", f"the smoothed loss is {number(usual)} now", width)
    if incident.samples:
        lines += _part("samples", few(incident.samples, 12), width)
    if incident.cause:
        lines += _part("cause", incident.cause, width, "alert")
    waiting = "not settled yet" if incident.state == "open" else "none"
    lines += _part("diagnosis", incident.diagnosis or waiting, width, _STYLES[incident.state])
    for place, (step, text) in enumerate(incident.tried):
        lines += _part("tried" if not place else "", f"{step:,}: {text}", width)
    return lines


def _part(label: str, text: str, width: int, style: str = "") -> list[Line]:
    parts = wrapped(clean(text, 1000), max(1, width - INDENT))
    return [
        (Span(f"  {label if not place else '':<{INDENT - 2}}", "label"), Span(part, style))
        for place, part in enumerate(parts)
    ]


incidents_page = titled(incidents_panel)


def incidents_rows(view: View, scene: Scene) -> Rows:
    """Every incident that is kept, oldest first."""
    columns = ("step", "seconds", "state", "reason", "loss", "lr", "refused", "restored", "diagnosis")
    rows = (
        (each.step, each.seconds, each.state, clean(each.reason), each.loss, each.lr, each.num_refused,
         each.num_restored, clean(each.diagnosis, 1000))
        for each in view.incidents.incidents
    )  # fmt: skip
    return columns, rows
