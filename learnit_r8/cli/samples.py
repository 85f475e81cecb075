"""``learnit-r8 samples``: what is known of the samples with the highest loss."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..dashboard.text import clean, fit, width_of
from ..dashboard.words import number
from ..journal import Run, UnreadableRun, find_run
from ..journal.samples import Samples, read_samples, sample_epochs
from .tables import write_csv

COLUMNS = ("index", "name", "loss", "last", "mean", "uses")


def samples(options: argparse.Namespace) -> int:
    """Print the hardest samples of the newest file, or of an epoch's."""
    run = Run(find_run(options.run))
    found = newest(run) if options.epoch is None else of_epoch(run, options.epoch - 1)
    chosen = found.hardest(options.top)
    if options.csv:
        write_csv(sys.stdout, COLUMNS, rows_of(found, chosen))
        return 0
    for line in lines_of(run.name, found, chosen):
        print(line)
    return 0


def of_epoch(run: Run, epoch: int) -> Samples:
    """The samples file of an epoch, 0-based.

    Raises:
        UnreadableRun: there is none; the message gives those that are kept.
        OSError, ValueError: it cannot be read.
    """
    there = sample_epochs(run.folder)
    if epoch not in there:
        known = ", ".join(str(each + 1) for each in there) or "none"
        raise UnreadableRun(f"--epoch must be one whose samples were kept ({known}), got {epoch + 1}.")
    return read_samples(run.folder, epoch)


def newest(run: Run) -> Samples:
    """The newest samples file that can be read.

    Raises:
        UnreadableRun: there is none.
    """
    reasons = []
    for epoch in reversed(sample_epochs(run.folder)):
        try:
            return read_samples(run.folder, epoch)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
    raise UnreadableRun(f"run must hold a samples file, got {reasons or 'none'} in {str(run.folder)!r}.")


def rows_of(samples: Samples, chosen: NDArray[np.int64]) -> Iterator[tuple[int, str, float, float, float, int]]:
    """Index, name, loss, last and mean observation, uses; of each chosen sample."""
    for index in chosen.tolist():
        yield (
            index,
            clean(samples.name_of(index), 200),
            float(samples.loss[index]),
            float(samples.last[index]),
            float(samples.mean[index]),
            int(samples.usage_count[index]),
        )


def lines_of(name: str, samples: Samples, chosen: NDArray[np.int64]) -> Iterable[str]:
    """A table for people."""
    rows = list(rows_of(samples, chosen))
    wide = min(60, max([6, *(width_of(row[1]) for row in rows)]))
    yield f"{clean(name, 60)}, epoch {samples.epoch + 1}, step {samples.step:,}; losses: {trust(samples)}"
    yield f"{'#':>9}  {fit('sample', wide)}  {'loss':>9}  {'last':>9}  {'mean':>9}  {'uses':>5}"
    for index, label, *values, uses in rows:
        numbers = "  ".join(f"{number(float(f'{value:.4g}')):>9}" for value in values)
        yield f"{index:>9}  {fit(label, wide)}  {numbers}  {uses:>5}"


def trust(samples: Samples) -> str:
    """Where the losses come from, and how far to trust them."""
    source = clean(samples.source, 40)
    if samples.is_exact:
        return source
    return f"{source}, estimates" + (": rough" if "batch" in source else "")
