"""Incidents as the runs of `tests/runs` had them before the package was made smaller, on a clock that stands still.

    python -m tests.runs.golden_incidents write     runs the tests of this folder, and writes the file
    python -m tests.runs.golden_incidents           runs them, and exits with 1 if an incident differs

`conftest.py` compares the incidents of each test that the file has a row for, so that the default tests do it, too. A
row has the incidents of one test, run by run, each with its steps, what was refused, the cause, the steps that were
restored, the ceilings of the rate, and how many probes there were: no texts, seconds or paths. A test whose incidents
differ between processors has none, nor one that draws examples, or cuts runs at places of the code (``UNSTEADY``). A
change of what recovery is to do changes the rows it must, and its commit says so.
"""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numpy._core import _multiarray_umath as _numpy

from learnit_r8 import R8Scheduler, events
from learnit_r8.testing import FakeClock, record_events

FILE = Path(__file__).parent / "golden_incidents.json"
WRITES = "R8_GOLDEN_INCIDENTS"
"""The variable with the file to which the tests add what they meet, in place of comparing."""

UNSTEADY = re.compile(r"test_(threads|failing_calls|outliving|site|saved_files|interrupts::test_(?!undisturbed))")
"""Tests of calls that are cut, threads and other processes."""

ENDS = (events.IncidentEnded, events.GaveUp)
KINDS = (
    events.BatchRefused, events.CauseFound, events.DamageFound, events.Probed, events.RolledBack, events.RestoreFailed,
    events.LrCapped, events.LrRestored, events.SamplesQuarantined, *ENDS,
)  # fmt: skip


class Recorder:
    """A listener to what belongs to incidents; those of all runs of a test, in the order in which they were made."""

    hears = KINDS

    def __init__(self):
        self.heard = record_events()

    def __call__(self, event):
        self.heard(event)


def incidents_of(heard):
    """One line for each incident: from its first event to that of its end, or to the end of the run."""
    lines, parts = [], {}

    def end():
        if parts:
            told = [f"{parts.pop('first')}-{parts.pop('last')}"]
            told += [f"{name} {' '.join(map(str, values))}".rstrip() for name, values in parts.items()]
            lines.append("; ".join(told))
            parts.clear()

    for event in heard:
        parts.setdefault("first", event.step)
        parts["last"] = event.step
        name, value = word_of(event)
        values = parts.setdefault(name, [])
        if name in ("refused", "probes"):
            # How many of a kind, and the first step to which a probe belongs.
            values[:] = [1 + values[0] if values else 1, *dict.fromkeys([*values[1:], value])]
        else:
            values.append(value)
        if isinstance(event, ENDS):
            end()
    end()
    return lines


def word_of(event):
    """What a line says of an event."""
    match event:
        case events.BatchRefused():
            return "refused", event.reason.replace(" ", "_")
        case events.CauseFound():
            return "cause", event.fault.replace(" ", "_") + ("" if event.is_certain else "?")
        case events.DamageFound():
            return "damaged", event.step
        case events.Probed():
            return "probes", event.reason.replace(" ", "_")
        case events.RolledBack():
            return "restored", event.to_step
        case events.RestoreFailed():
            return "failed", event.to_step
        case events.LrCapped():
            return "rate", f"{event.ceiling:.3g}" + ("x" if event.is_share else "")
        case events.LrRestored():
            return "rate", f"free@{event.step}"
        case events.SamplesQuarantined():
            return "quarantined", ",".join(map(str, sorted(event.samples)))
        case events.GaveUp():
            return "gave", "up"
    return "ended", ""


@contextlib.contextmanager
def recorded():
    """The recorders of the schedulers that are made meanwhile; the clock stands still."""
    made, begin = [], R8Scheduler.__init__

    @functools.wraps(begin)
    def begin_recorded(self, *args, **arguments):
        listeners = arguments.get("listeners", ())
        if isinstance(listeners, (list, tuple)):
            made.append(Recorder())
            arguments["listeners"] = [*listeners, made[-1]]
        arguments.setdefault("clock", FakeClock())
        begin(self, *args, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(R8Scheduler, "__init__", begin_recorded)
        # What a backup costs decides when the next early one is taken.
        patch.setattr(time, "perf_counter", float)
        yield made


@functools.cache
def rows():
    """By test, the incidents of its runs."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def name_of(item):
    """The name of a test in the file: its file and its function with parameters."""
    return f"{item.path.stem}::{item.name}"


def met(item):
    """A generator around the call of a test: compares its incidents with its row, or adds a row."""
    name, target = name_of(item), os.environ.get(WRITES)
    if hasattr(item.obj, "hypothesis") or (not target and name not in rows()):
        return (yield)
    with recorded() as made:
        result = yield
    found = [lines for each in made if (lines := incidents_of(each.heard))]
    if target:
        with open(target, "a", encoding="utf-8") as file:
            file.write(json.dumps({name: found}) + "\n")
    elif found != rows()[name]:
        pytest.fail(f"other incidents than before:\n  before {rows()[name]}\n  now    {found}", pytrace=False)
    return result


def run(target="", **environment):
    """Run the tests of this folder; the exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
    command += ["-m", "not slow and not program", str(FILE.parent)]
    return subprocess.run(command, env={**os.environ, **environment, WRITES: target}).returncode


def found_with(**environment):
    """By test, what a run of this folder meets with this environment."""
    target = FILE.with_suffix(".lines")
    try:
        run(str(target), **environment)
        return {name: row for line in target.read_text().splitlines() for name, row in json.loads(line).items() if row}
    finally:
        target.unlink(missing_ok=True)


def write():
    """Write the rows that two runs agree on, the second as on an old processor."""
    first = found_with()
    units = " ".join(name for name in _numpy.__cpu_dispatch__ if _numpy.__cpu_features__.get(name))
    second = found_with(OPENBLAS_CORETYPE="Prescott", NPY_DISABLE_CPU_FEATURES=units)
    same = {name: first[name] for name in sorted(first) if second.get(name) == first[name] and not UNSTEADY.match(name)}
    FILE.write_text(
        "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in same.items()) + "\n}\n"
    )


if __name__ == "__main__":
    sys.exit(write() if sys.argv[1:] == ["write"] else run())
