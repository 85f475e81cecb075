"""The page of several runs: their curves over each other, and a row for each, the best on top."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.durable_io import open_output
from ..dashboard.watch import view_of
from ..journal.run import Run, find_run
from .curves import comparison_sections
from .document import document
from .runs import Comparison


def write_comparison(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write a page that compares runs.

    Args:
        runs: At least two run folders, or names of runs; see `find_run`.
        out: The file to write.

    Returns:
        Its path.

    Raises:
        UnreadableRun: a folder holds no run.
        ValueError: there are fewer than two.
        OSError: the file cannot be written.
    """
    if len(runs) < 2:
        raise ValueError(f"runs must be two or more, got {len(runs)}.")
    found = [Run(find_run(os.fspath(run))) for run in runs]
    views = [view_of(run) for run in found]
    text = document({"title": f"{len(runs)} runs", "sections": list(comparison_sections(Comparison(found, views)))})
    path = Path(out)
    with open(open_output(path), "w", encoding="utf-8") as file:
        file.write(text)
    return path
