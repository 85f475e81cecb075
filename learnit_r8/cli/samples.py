"""``learnit-r8 samples``: the samples with the highest loss, or those that look mislabelled."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dashboard.export import write_csv
from ..dashboard.text import clean, fit, number, width_of
from ..events.codec import strict_json
from ..journal.run import Run, UnreadableRun, find_run
from ..journal.samples import Samples, most_suspects, read_samples, sample_epochs
from ..table.label_noise import Suspects

COLUMNS: Sequence[str] = ("index", "name", "loss", "last", "mean", "uses")
SUSPECT_COLUMNS: Sequence[str] = (*COLUMNS, "score", "why")
HARDEST = 50
WIDEST = 60


def samples(options: argparse.Namespace) -> int:
    """Print the hardest samples of the newest file, or the suspects of the file with most, or an epoch's."""
    run = Run(find_run(options.run))
    epochs = sample_epochs(run.folder) if options.epoch is None else [_kept_epoch(run, options.epoch - 1)]
    if options.suspects:
        found, verdict = most_suspects(readable(run, epochs))
        rows, columns, about = suspect_rows(found, verdict, options.top), SUSPECT_COLUMNS, summary(found, verdict)
    else:
        found = next(readable(run, epochs[::-1]))
        rows, columns = rows_of(found, found.hardest(options.top or HARDEST)), COLUMNS
        about = f"losses: {trust(found)}"
    if options.json:
        facts = {"run": str(run.folder), "epoch": found.epoch, "step": found.step, "losses": trust(found)}
        listed = [dict(zip(columns, row, strict=True)) for row in rows]
        print(strict_json({**facts, "samples": listed}, non_finite=lambda value: None))
        return 0
    if options.csv:
        write_csv(sys.stdout, columns, rows)
        return 0
    print(f"{clean(run.name, WIDEST)}, epoch {found.epoch + 1}, step {found.step:,}; {about}")
    for line in lines_of(columns, list(rows)):
        print(line)
    return 0


def _kept_epoch(run: Run, epoch: int) -> int:
    there = sample_epochs(run.folder)
    if epoch not in there:
        known = ", ".join(str(each + 1) for each in there) or "none"
        raise UnreadableRun(f"--epoch must be one whose samples were kept ({known}), got {epoch + 1}.")
    return epoch


def readable(run: Run, epochs: Iterable[int]) -> Iterator[Samples]:
    """The samples files of some epochs that can be read, at least one.

    Raises:
        UnreadableRun: none can be read.
    """
    reasons, is_empty = [], True
    for epoch in epochs:
        try:
            samples = read_samples(run.folder, epoch)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
            continue
        is_empty = False
        yield samples
    if is_empty:
        raise UnreadableRun(f"run must hold a samples file, got {reasons or 'none'} in {str(run.folder)!r}.")


Row = tuple[Any, ...]


def rows_of(samples: Samples, chosen: NDArray[np.int64]) -> Iterator[Row]:
    """Index, name, loss, last and mean observation, and uses of each chosen sample."""
    for index in chosen.tolist():
        yield (
            index,
            clean(samples.name_of(index), 200),
            float(samples.loss[index]),
            float(samples.last[index]),
            float(samples.mean[index]),
            int(samples.usage_count[index]),
        )


def suspect_rows(samples: Samples, verdict: Suspects, top: int | None) -> Iterator[Row]:
    """The row of `rows_of` with score and reason of each suspect; most suspect first."""
    chosen = rows_of(samples, verdict.indices[:top])
    for row, score, why in zip(chosen, verdict.score.tolist(), verdict.why, strict=False):
        yield (*row, score, why)


def summary(samples: Samples, verdict: Suspects) -> str:
    """The number of suspects and the noise rate, or the reason why there are none."""
    if not len(verdict.indices):
        return f"no suspects: {verdict.reason}"
    low, high = verdict.noise_range
    share = f"{verdict.noise_rate:.1%} of {samples.num_judged:,} judged (between {low:.1%} and {high:.1%})"
    return f"{len(verdict.indices):,} look mislabelled, {share}"


def lines_of(columns: Sequence[str], rows: list[Row]) -> Iterator[str]:
    """The lines of a table for people."""
    wide = min(WIDEST, max([6, *(width_of(row[1]) for row in rows)]))
    texts = [("#", "sample", *columns[2:])]
    for index, label, loss, last, mean, uses, *more in rows:
        numbers = (number(value, 4) for value in (loss, last, mean))
        texts.append((index, label, *numbers, uses, *((f"{more[0]:.3f}", more[1]) if more else ())))
    for index, label, loss, last, mean, uses, *more in texts:
        line = f"{index:>9}  {fit(label, wide)}  {loss:>9}  {last:>9}  {mean:>9}  {uses:>5}"
        yield line + (f"  {more[0]:>5}  {more[1]}" if more else "")


def trust(samples: Samples) -> str:
    """Source of the losses and a word on how far to trust them."""
    source = clean(samples.source, 40)
    if samples.is_exact:
        return source
    return f"{source}, estimates" + (": rough" if "batch" in source else "")
