"""The incidents of a run: what happened, what was done, what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..dashboard.render.svg import sparkline
from ..dashboard.state.incidents import MOST_INCIDENTS, Incident
from ..dashboard.state.view import View
from ..dashboard.text import clock, number
from ..recovery.incidents.record import FOLDER, BadRecord, numbers_in, read_record
from .charts import text
from .style import wide_table

DRAWN = 48
"""Losses around an incident that are drawn."""

ENDS = {"open": "not settled", "over": "over", "gave up": "the run gave up"}


def incident_table(view: View, folder: Path) -> tuple[str, str]:
    """The incidents as a table, the newest first, and a sentence on them; "" twice without any.

    Args:
        view: The run.
        folder: Its folder, whose records hold the losses around them.
    """
    incidents = view.incidents.incidents
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
