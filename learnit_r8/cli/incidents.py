"""``learnit-r8 incidents``: what went wrong in a run, from the records in its folder."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoint.durable_io import open_output
from ..dashboard.event_text import describe
from ..dashboard.text import clean, number, table_lines
from ..events.codec import from_fields, strict_json
from ..journal.run import UnreadableRun, find_run, free_of_runs
from ..recovery.incidents.record import PARTS, BadRecord, export, numbers_in, read_record

MOST_LOSSES, MOST_SAMPLES, MOST_LINES = 8, 16, 40


def incidents(options: argparse.Namespace) -> int:
    """List the incidents of a run, show one, or write one as a file."""
    # The folder that holds the records: that of a run, or one of checkpoints.
    has_records = options.run is not None and (Path(options.run) / "incidents").is_dir()
    folder, chosen = Path(options.run) if has_records else find_run(options.run), options.number
    there = numbers_in(folder)
    if chosen is None and options.export is None:
        facts = facts_of(folder, there)
        records = facts["incidents"]
        if options.json:
            print(strict_json(facts, non_finite=lambda value: None))
        elif not records:
            print(clean(f"no incident is recorded in {folder}"))
        else:
            rows = [_row(each) for each in records]
            rows.insert(0, ("#", "step", "refused", "state", "what"))
            print(*table_lines(rows, right=(0, 1, 2), widest=110), sep="\n")
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
        print(*map(clean, _lines_of(record)), sep="\n")
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
        return str(record["number"]), "", "", "unreadable", clean(record["error"], 110)
    refusals = record["refusals"]
    reason = str(refusals[0].get("verdict", "")) if refusals else "the weights were tested"
    said = clean(record["cause"] or record["diagnosis"] or reason, 400)
    return str(record["number"]), f"{record['step']:,}", str(record["num_refused"]), record["state"], said


def _lines_of(record: dict[str, Any]) -> Iterator[str]:
    """Return the lines about one incident: the sentence first, then the evidence."""
    yield record["cause"] or f"step {record['step']:,}: nobody has looked where it began"
    finding = record["finding"]
    if finding is not None and finding["missing"]:
        yield f"  not looked at: {finding['missing']}"
    yield f"found   {record['diagnosis'] or 'not settled'}"
    yield ""
    if finding is not None:
        yield "evidence"
        yield from (f"  {line}" for line in finding["evidence"][:MOST_LINES])
    for refusal in record["refusals"][:3]:
        yield from _refusal_lines(refusal)
    if len(record["refusals"]) > 3:
        yield f"... and {record['num_refused'] - 3} more refused batches"
    yield "what was done"
    for event in record["timeline"][:MOST_LINES]:
        yield f"  step {event.get('step', '?')}: {_said(event)}"
    if record["num_events"] > MOST_LINES:
        yield f"  ... and {record['num_events'] - MOST_LINES} more"
    held = ", ".join(record["files"]) or "names only"
    left = "".join(f"; not {name} ({why})" for name, why in record["left_out"].items())
    yield f"holds   {held}{left}"
    yield "with    " + ", ".join(f"{name} {value}" for name, value in record["versions"].items())


def _said(event: dict[str, Any]) -> str:
    """What happened, in the words of the screen; of an event that another version wrote, its fields."""
    try:
        said = describe(from_fields(event))
    except ValueError:
        said = None
    facts = ", ".join(f"{name} {_shown(value)}" for name, value in event.items() if name not in _LEFT)
    return said.text if said is not None else f"{event.get('kind', '?')} {facts}"


_LEFT = ("step", "seconds", "kind")


def _refusal_lines(refusal: dict[str, Any]) -> Iterator[str]:
    step, loss = refusal.get("step", "?"), _shown(refusal.get("loss"))
    lr = refusal.get("lr")
    rate = f", rate {_shown(lr)}" if isinstance(lr, float) and math.isfinite(lr) else ""
    yield f"refused at step {step}: loss {loss}, {refusal.get('verdict', '')}{rate}"
    guard = refusal.get("guard")
    if isinstance(guard, dict) and "threshold" in guard:
        level, threshold = guard.get("level"), guard["threshold"]
        usual = f", the usual loss {_shown(level)}" if isinstance(level, float) and math.isfinite(level) else ""
        is_known = isinstance(threshold, float) and math.isfinite(threshold)
        yield (
            f"  the guard's threshold was {_shown(threshold)}{usual}"
            if is_known
            else "  the guard had no threshold yet"
        )
    before = refusal.get("losses_before")
    if isinstance(before, list) and before:
        yield f"  losses before: {', '.join(map(_shown, before[-MOST_LOSSES:]))}"
    names = refusal.get("names")
    if isinstance(names, list) and names:
        more = f" and {len(names) - MOST_SAMPLES} more" if len(names) > MOST_SAMPLES else ""
        yield f"  samples: {', '.join(map(str, names[:MOST_SAMPLES]))}{more}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 4) if math.isfinite(value) else repr(value)
    return str(value)
