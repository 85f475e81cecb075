"""``learnit-r8 export``: the numbers of a run for other programs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TextIO

from ..checkpoint.durable_io import open_output
from ..dashboard.export import write_csv
from ..events import EpochDone, Event, MetricsLogged, StepsDone
from ..events.codec import strict_json
from ..events.event import describe
from ..events.text import clean
from ..journal.run import Record, Run, find_run, free_of_runs

Row = dict[str, Any]


def export(options: argparse.Namespace) -> int:
    """Write the steps, epochs, metrics or events of a run, as CSV or as JSON lines."""
    run = Run(find_run(options.run))
    rows = ROWS[options.of](run.records())
    with _opened(options.out) as stream:
        if options.format == "csv":
            columns = COLUMNS[options.of]
            write_csv(stream, columns, ([row[name] for name in columns] for row in rows))
        else:
            for row in rows:
                stream.write(strict_json(row) + "\n")
    return 0


def _opened(out: str | None) -> contextlib.AbstractContextManager[TextIO]:
    if out is None:
        return contextlib.nullcontext(sys.stdout)
    return open(open_output(free_of_runs(out)), "w", encoding="utf-8", newline="")


def _fields(kind: type[Event], records: Iterable[Record]) -> Iterator[Row]:
    for when, event in records:
        if isinstance(event, kind):
            yield {"time": when, **vars(event)}


def _metrics(records: Iterable[Record]) -> Iterator[Row]:
    for when, event in records:
        if isinstance(event, MetricsLogged):
            for name, value in event.named.items():
                yield {"time": when, "step": event.at_step, "name": clean(name, 200), "value": value}


def _events(records: Iterable[Record]) -> Iterator[Row]:
    for when, event in records:
        said = describe(event)
        if said is not None:
            kind = type(event).__name__
            yield {"time": when, "step": event.step, "kind": kind, "level": said.level, "text": said.text}


ROWS: dict[str, Callable[[Iterable[Record]], Iterator[Row]]] = {
    "steps": partial(_fields, StepsDone),
    "epochs": partial(_fields, EpochDone),
    "metrics": _metrics,
    "events": _events,
}
COLUMNS = {
    "steps": (
        "time", "step", "seconds", "epoch", "progress", "num_steps", "loss", "lowest", "highest", "last_loss",
        "expected_loss", "lr", "samples", "num_steady",
    ),
    "epochs": ("time", "step", "seconds", "epoch", "progress", "loss", "lr", "samples", "epoch_seconds"),
    "metrics": ("time", "step", "name", "value"),
    "events": ("time", "step", "kind", "level", "text"),
}  # fmt: skip
