"""``learnit-r8 incidents``: what went wrong in a run, from the records in its folder."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..dashboard.text import table_lines, wrapped
from ..events.codec import from_fields, strict_json
from ..events.event import describe
from ..events.text import clean, few, number
from ..journal.run import UnreadableRun, find_run, free_of_runs
from ..recovery.record import PARTS, BadRecord, export, incident_of, numbers_in, read_record
from ..state.durable_io import open_output

MOST_LOSSES, MOST_SAMPLES, MOST_LINES, MOST_TEXT = 8, 16, 40, 4000


def incidents(options: argparse.Namespace) -> int:
    """List the incidents of a run, show one, or write one as a file."""
    # The folder that holds the records: that of a run, or one of checkpoints.
    has_records = options.run is not None and (Path(options.run) / "incidents").is_dir()
    folder, chosen = Path(options.run) if has_records else find_run(options.run), options.number
    there = numbers_in(folder)
    if chosen is None and options.export is None:
        facts = facts_of(folder, there)
        if options.json:
            print(strict_json(facts, non_finite=lambda value: None))
        elif not facts["incidents"]:
            print(clean(f"no incident is recorded in {folder}"))
        else:
            rows = [("#", "step", "refused", "state", "what"), *map(_row, facts["incidents"])]
            # In a pipe, where programs read it, nothing is cut.
            widest = max(40, shutil.get_terminal_size().columns - 34) if sys.stdout.isatty() else MOST_TEXT
            print(*table_lines(rows, right=(0, 1, 2), widest=widest), sep="\n")
        return 0
    if not there:
        raise UnreadableRun(f"run must have a recorded incident, got none in {str(folder)!r}.")
    chosen = there[-1] if chosen is None else chosen
    if chosen not in there:
        raise UnreadableRun(f"the number must be that of an incident ({', '.join(map(str, there))}), got {chosen}.")
    home = folder / "incidents" / str(chosen)
    if options.export is not None:
        path = free_of_runs(options.export if options.export.endswith(".r8") else f"{options.export}.r8")
        with open(open_output(path), "wb") as file:
            export(home, PARTS if options.data else (), file)
        print(clean(f"{path} (incident {chosen}, {'with' if options.data else 'without'} data)"))
        return 0
    record = read_record(home)
    if options.json:
        print(strict_json(record, non_finite=lambda value: None))
    else:
        print(*(clean(line, MOST_TEXT) for line in _lines_of(record)), sep="\n")
    return 0


def facts_of(folder: Path, there: list[int] | None = None) -> dict[str, Any]:
    """The records of a folder for programs, the oldest first; of a damaged one, its number and the error."""
    records = []
    for each in numbers_in(folder) if there is None else there:
        try:
            records.append(read_record(folder / "incidents" / str(each)))
        except (BadRecord, OSError) as error:
            records.append({"number": each, "error": str(error)})
    return {"run": str(folder), "incidents": records}


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    if "error" in record:
        return str(record["number"]), "", "", "unreadable", clean(record["error"])
    incident = incident_of(record)
    said = f"{incident.cause or incident.what}; {incident.found}"
    return (
        str(record["number"]),
        f"{incident.step:,}",
        str(incident.num_refused),
        incident.state,
        clean(said, MOST_TEXT),
    )


def _lines_of(record: dict[str, Any]) -> Iterator[str]:
    """Return the lines about one incident: what, where and what to do first, then the evidence."""
    incident, finding = incident_of(record), record["finding"]
    yield from _labelled("", incident.headline)
    if finding is not None and finding["missing"]:
        yield f"  not looked at: {finding['missing']}"
    for label, said in incident.facts[1:]:
        yield from _labelled(label, said)
    if finding is not None:
        yield "evidence"
        yield from (f"  {line}" for line in finding["evidence"][:MOST_LINES])
    for refusal in record["refusals"][:3]:
        yield from _refusal_lines(refusal)
    if len(record["refusals"]) > 3:
        yield f"... and {record['num_refused'] - 3} more refused batches"
    yield "events"
    # Probes in a row, of which there may be dozens, are one line.
    timeline = record["timeline"]
    for is_probe, group in itertools.groupby(timeline, key=lambda event: event.get("kind") == "Probed"):
        found = list(group)
        if is_probe and len(found) > 2:
            yield f"  step {found[0].get('step')} to {found[-1].get('step')}: {len(found)} probes; the last:"
            found = found[-1:]
        yield from (f"  step {event.get('step', '?')}: {_said(event)}" for event in found)
    if record["num_events"] > len(timeline):
        yield f"  ... and {record['num_events'] - len(timeline)} more"
    left = "".join(f"; not {name} ({why})" for name, why in record["left_out"].items())
    yield from _labelled("holds", f"{', '.join(record['files']) or 'names only'}{left}")
    yield from _labelled("with", ", ".join(f"{name} {value}" for name, value in record["versions"].items()))


def _labelled(label: str, text: str) -> Iterator[str]:
    """A text behind its label; on a terminal broken between words, and never cut."""
    if text:
        width = shutil.get_terminal_size().columns - 10 if sys.stdout.isatty() else MOST_TEXT
        first, *rest = wrapped(clean(text, MOST_TEXT), max(20, width))
        yield f"{label:<8}{first}" if label else first
        yield from (" " * 8 + line for line in rest)


def _said(event: dict[str, Any]) -> str:
    """What happened, in the words of every view; of an event that another version wrote, its fields."""
    with contextlib.suppress(ValueError):
        if (said := describe(from_fields(event))) is not None:
            return said.text
    fields = (f"{name} {value}" for name, value in event.items() if name not in ("step", "seconds", "kind"))
    return f"{event.get('kind', '?')} {', '.join(fields)}"


def _refusal_lines(refusal: dict[str, Any]) -> Iterator[str]:
    rate = f", rate {_shown(refusal['lr'])}" if _is_known(refusal.get("lr")) else ""
    step, loss = refusal.get("step", "?"), _shown(refusal.get("loss"))
    yield f"refused at step {step}: loss {loss}, {refusal.get('verdict', '')}{rate}"
    given = refusal.get("guard")
    guard: dict[str, Any] = given if isinstance(given, dict) else {}
    if _is_known(guard.get("threshold")):
        usual = f", the usual loss {_shown(guard['level'])}" if _is_known(guard.get("level")) else ""
        yield f"  the guard's threshold was {_shown(guard['threshold'])}{usual}"
    elif guard.get("threshold") is not None:
        yield "  the guard had no threshold yet"
    before, names = refusal.get("losses_before"), refusal.get("names")
    if isinstance(before, list) and before:
        yield f"  losses before: {', '.join(map(_shown, before[-MOST_LOSSES:]))}"
    if isinstance(names, list) and names:
        yield f"  samples: {few(names, MOST_SAMPLES)}"


def _is_known(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    return number(value, 4) if _is_known(value) else str(value)
