"""``learnit-r8 samples`` and ``export``: the samples of a run, and its numbers, as tables."""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ..dashboard.text import WIDEST, table_lines
from ..events import EpochDone, MetricsLogged, StepsDone
from ..events.codec import strict_json
from ..events.event import describe
from ..events.text import clean, number
from ..journal.run import Record, Run, UnreadableRun, find_run, free_of_runs
from ..journal.samples import Samples, more_before, readable_samples, sample_epochs, verdict_text
from ..state.durable_io import open_output
from ..table.labels.suspects import Suspects

COLUMNS: Sequence[str] = ("index", "name", "loss", "last", "mean", "uses")
SUSPECT_COLUMNS: Sequence[str] = (*COLUMNS, "score", "why")
LABEL_COLUMNS: Sequence[str] = ("is_label_issue", "label_score", "given_label", "predicted_label")
"""The columns of cleanlab's tables, behind ours."""
ALL_COLUMNS: Sequence[str] = (*SUSPECT_COLUMNS, *LABEL_COLUMNS)
HARDEST = 50

Rows = dict[str, list[Any]]
"""The columns of a table, as lists."""


def samples(options: argparse.Namespace) -> int:
    """Print the hardest samples or the suspects, of the newest file or of an epoch's."""
    run = Run(find_run(options.run))
    epochs = sample_epochs(run.folder)
    if options.epoch is not None and options.epoch - 1 not in epochs:
        known = ", ".join(str(each + 1) for each in epochs) or "none"
        raise UnreadableRun(f"--epoch must be one whose samples were kept ({known}), got {options.epoch}.")
    epochs = epochs if options.epoch is None else [options.epoch - 1]
    are_suspects, columns, note = options.suspects or options.places, COLUMNS, ""
    if are_suspects:
        found, verdict, note = suspects_of(run, epochs, options.precision or 0.5, options.others)
        chosen, columns = verdict.indices[: options.top], ALL_COLUMNS
    elif options.others or options.precision is not None:
        raise ValueError("--precision and --with must be given with --suspects or --places, got neither.")
    else:
        found = next(readable(run, epochs[::-1]))
        verdict, chosen = found.suspects(), found.hardest(options.top or HARDEST)
    rows = places_of(found, verdict, options.top) if options.places else rows_of(found, verdict, chosen, columns)
    if options.json:
        print(strict_json(facts_of(run, found, verdict, rows), non_finite=lambda value: None))
    elif options.csv:
        write_csv(sys.stdout, list(rows), zip(*rows.values(), strict=True))
    else:
        about = verdict_text(verdict) if are_suspects else f"losses: {trust(found)}"
        print(f"{clean(run.name, WIDEST)}, epoch {found.epoch + 1}, step {found.step:,}; {about}")
        if options.places:
            titles = ("#", "sample", "place", "label", "should be", "votes", "score")
            texts = [[str(value) for value in values] for values in rows.values()]
            print(*table_lines([titles, *zip(*texts, strict=True)], right=[0, 2, 5, 6]), sep="\n")
        else:
            print(*lines_of(rows), sep="\n")
        if note:
            print(f"\n{note}")
    return 0


def write_csv(stream: TextIO, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header and rows, so that a spreadsheet takes no text for a formula; a value of None stays empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.13g}"
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return "'" + value if is_formula else value


def places_of(samples: Samples, verdict: Suspects, top: int | None) -> Rows:
    """The labels that look wrong, a row for each.

    Raises:
        UnreadableRun: the run has one label a sample.
    """
    places = verdict.places
    if places is None:
        raise UnreadableRun("--places needs predictions of several labels a sample, got one label, or none.")
    indices = places.indices[:top].tolist()
    return {
        "index": indices,
        "name": [clean(samples.name_of(index), 200) for index in indices],
        "place": places.places[:top].tolist(),
        "given_label": places.given[:top].tolist(),
        "predicted_label": places.suggested[:top].tolist(),
        "votes": places.votes[:top].tolist(),
        "score": [round(score, 4) for score in places.score[:top].tolist()],
    }


def suspects_of(
    run: Run, epochs: Sequence[int], precision: float, others: Sequence[str] = ()
) -> tuple[Samples, Suspects, str]:
    """The newest samples of these epochs, the verdict on their labels, and where an earlier epoch had more suspects.

    The newest samples of other runs count in the verdict, too; the text is "" if no earlier epoch had more.

    Raises:
        UnreadableRun: none of them can be read, or another run is not of these samples.
    """
    files = list(readable(run, epochs))
    if others:
        beside = (Run(find_run(other)) for other in others)
        newest = [next(readable(other, sample_epochs(other.folder)[::-1])) for other in beside]
        try:
            return files[-1], files[-1].suspects(precision, runs=newest), ""
        except ValueError as error:
            raise UnreadableRun(f"--with: {error}") from None
    verdict = files[-1].suspects(precision)
    return files[-1], verdict, more_before(files, verdict, precision)


def readable(run: Run, epochs: Iterable[int]) -> Iterator[Samples]:
    """The samples files of some epochs that can be read, at least one.

    Raises:
        UnreadableRun: none can be read.
    """
    reasons, count = list[str](), 0
    for count, samples in enumerate(readable_samples(run.folder, epochs, reasons), start=1):  # noqa: B007
        yield samples
    if not count:
        raise UnreadableRun(
            f"run must hold a samples file, got {reasons or 'none'} in {str(run.folder)!r}. (A run whose batches are "
            "your own has no table of samples.)"
        )


def rows_of(samples: Samples, verdict: Suspects, chosen: NDArray[np.int64], columns: Sequence[str]) -> Rows:
    """Some columns of the chosen samples, in their order; names and labels without control sequences."""
    known: Mapping[str, Any] = samples.columns(verdict) | {"index": np.arange(len(samples.loss))}
    rows = {}
    for name in columns:
        values = known["sample" if name == "name" else name]
        picked = values[chosen].tolist() if isinstance(values, np.ndarray) else [values[at] for at in chosen.tolist()]
        rows[name] = [clean(value, 200) if isinstance(value, str) else value for value in picked]
    return rows


def facts_of(run: Run, samples: Samples, verdict: Suspects, rows: Rows) -> dict[str, Any]:
    """A table as JSON: where it is from, the verdict on labels, and an object for each sample."""
    return {
        "run": str(run.folder), "name": run.name, "epoch": samples.epoch, "step": samples.step,
        "losses": trust(samples), "is_exact": samples.is_exact, "num_judged": verdict.num_judged,
        "num_suspects": len(verdict.indices), "noise_rate": verdict.noise_rate, "noise_range": verdict.noise_range,
        "precision": verdict.precision, "caution": verdict.caution, "method": verdict.method, "reason": verdict.reason,
        "samples": [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)],
    }  # fmt: skip


def lines_of(rows: Rows) -> Iterator[str]:
    """The lines of a table; with the labels, if they are known."""
    shown = {"#": _texts(rows["index"]), "sample": rows["name"]}
    shown |= {name: [number(value, 4) for value in rows[name]] for name in ("loss", "last", "mean")}
    shown["uses"] = _texts(rows["uses"])
    if "score" in rows:
        shown["score"] = [f"{value:.3f}" for value in rows["score"]]
    numbers = [place for place, title in enumerate(shown) if title != "sample"]
    if len(rows) > len(COLUMNS):
        shown |= {title: _texts(rows[name]) for title, name in LABELS if any(value is not None for value in rows[name])}
    if "why" in rows:
        shown["why"] = rows["why"]
    return table_lines([[*shown], *zip(*shown.values(), strict=True)], right=numbers)


LABELS = (("label", "given_label"), ("should be", "predicted_label"))


def _texts(values: list[Any]) -> list[str]:
    return ["?" if value is None else str(value) for value in values]


def trust(samples: Samples) -> str:
    """Source of the losses and a word on how far to trust them."""
    source = clean(samples.source, 40)
    if samples.is_exact:
        return source
    return f"{source}, estimates" + (": rough" if "batch" in source else "")


def export(options: argparse.Namespace) -> int:
    """Write the steps, epochs, metrics or events of a run, as CSV or as JSON lines."""
    rows = exported(Run(find_run(options.run)).records(), options.of)
    out: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(sys.stdout)
    if options.out is not None:
        out = open(open_output(free_of_runs(options.out)), "w", encoding="utf-8", newline="")  # noqa: SIM115
    with out as stream:
        if options.format == "csv":
            columns = EXPORTED[options.of]
            write_csv(stream, columns, ([row[name] for name in columns] for row in rows))
        else:
            stream.writelines(strict_json(row) + "\n" for row in rows)
    return 0


EXPORTED = {
    "steps": (
        "time", "step", "seconds", "epoch", "progress", "num_steps", "loss", "lowest", "highest", "last_loss",
        "expected_loss", "lr", "samples", "num_steady",
    ),
    "epochs": ("time", "step", "seconds", "epoch", "progress", "loss", "lr", "samples", "epoch_seconds"),
    "metrics": ("time", "step", "name", "value"),
    "events": ("time", "step", "kind", "level", "text"),
}  # fmt: skip
"""What can be exported, and the columns of it as CSV."""


def exported(records: Iterable[Record], what: str) -> Iterator[dict[str, Any]]:
    """A row for each of the steps, epochs, metrics or events of a run."""
    for when, event in records:
        if isinstance(event, {"steps": StepsDone, "epochs": EpochDone}.get(what, ())):
            yield {"time": when, **vars(event)}
        elif what == "metrics" and isinstance(event, MetricsLogged):
            for name, value in event.named.items():
                yield {"time": when, "step": event.at_step, "name": clean(name, 200), "value": value}
        elif what == "events" and (said := describe(event)) is not None:
            words = {"kind": type(event).__name__, "level": said.level, "text": said.text}
            yield {"time": when, "step": event.step, **words}
