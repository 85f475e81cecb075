"""The incidents of a run: what happened, what was done, what was found."""

from __future__ import annotations

import math

from ..dashboard.state.incidents import Incident
from ..dashboard.state.view import View
from ..dashboard.text import clock, number
from .charts import text

ENDS = {"open": "not settled", "over": "over", "gave up": "the run gave up"}


def incident_table(view: View) -> tuple[str, str]:
    """The incidents as a table, the newest first, and a sentence on them; "" twice without any."""
    incidents = view.incidents.incidents
    if not incidents:
        return "", ""
    head = "".join(f"<th>{name}</th>" for name in ("time", "step", "epoch", "what happened", "done", "found"))
    rows = "".join(map(_row, reversed(incidents)))
    refused = f"{view.num_refused:,} {'loss' if view.num_refused == 1 else 'losses'} refused in all"
    count = f"{len(incidents):,} {'incident' if len(incidents) == 1 else 'incidents'}, newest first; {refused}."
    table = f'<div class="wide"><table class="incidents"><thead><tr>{head}</tr></thead>{rows}</table></div>'
    return table, count


def _row(incident: Incident) -> str:
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
    found = text(incident.diagnosis, 300) or ENDS.get(incident.state, "")
    tried = "".join(f"<li>step {step:,}: {text(said, 300)}</li>" for step, said in incident.tried)
    steps = f"<details><summary>{len(incident.tried)} events</summary><ol>{tried}</ol></details>" if tried else ""
    kind = "alert" if incident.state == "gave up" else "warn" if incident.state == "open" else "good"
    return (
        f'<tr class="{kind}" tabindex="0"><td>{clock(incident.seconds)}</td><td>{incident.step:,}</td>'
        f"<td>{incident.epoch + 1}</td><td>{what}</td><td>{done}{steps}</td><td>{found}</td></tr>"
    )
