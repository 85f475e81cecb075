"""``learnit-r8 incidents``: what went wrong in a run, what was done about it, and what it was found to be."""

from __future__ import annotations

import argparse
from typing import Any

from ..dashboard.state.incidents import Incident
from ..dashboard.state.view import View
from ..dashboard.text import clean, clock, number
from ..events.codec import strict_json
from ..journal.run import Run, find_run
from .compare import folded
from .table import table_lines


def incidents(options: argparse.Namespace) -> int:
    """Print the incidents of a run, the newest first."""
    run = Run(find_run(options.run))
    view = folded(run)
    if options.json:
        print(strict_json(facts_of(run, view), non_finite=lambda value: None))
        return 0
    found = view.incidents.incidents[::-1]
    print(f"{clean(run.name, 60)}: {len(found)} incidents, {view.num_refused:,} losses refused in all")
    for incident in found:
        loss = "" if incident.loss != incident.loss and not incident.num_refused else f"loss {number(incident.loss)}, "
        print(f"\nstep {incident.step:,} ({clock(incident.seconds)}): {loss}{clean(incident.reason, 200)}")
        rows = [(f"  step {step:,}", clean(said, 300)) for step, said in incident.tried]
        rows.append((f"  {incident.state}", clean(incident.diagnosis, 300)))
        print(*table_lines(rows, widest=300), sep="\n")
    return 0


def facts_of(run: Run, view: View) -> dict[str, Any]:
    """The incidents of a run for programs, the newest first."""
    return {
        "run": str(run.folder),
        "name": run.name,
        "num_refused": view.num_refused,
        "incidents": [_facts(incident) for incident in reversed(view.incidents.incidents)],
    }


def _facts(incident: Incident) -> dict[str, Any]:
    return {
        "step": incident.step,
        "seconds": incident.seconds,
        "epoch": incident.epoch,
        "reason": clean(incident.reason, 500),
        "loss": incident.loss,
        "lr": incident.lr,
        "samples": list(incident.samples),
        "num_refused": incident.num_refused,
        "num_probes": incident.num_probes,
        "num_restored": incident.num_restored,
        "state": incident.state,
        "cause": clean(incident.cause, 1000),
        "diagnosis": clean(incident.diagnosis, 1000),
        "tried": [{"step": step, "text": clean(said, 500)} for step, said in incident.tried],
    }
