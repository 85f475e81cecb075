"""The report: a run folder as one HTML page that needs nothing else - no network, no script, no other file."""

from __future__ import annotations

import os
from pathlib import Path

from .gather import gather
from .page import page


def write_report(run_dir: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the report of a run.

    Args:
        run_dir: The run folder; the run may still go on.
        out: The file to write.

    Returns:
        Its path.

    Raises:
        UnreadableRun: the folder holds no run.
        OSError: the disk refused.
    """
    path = Path(out)
    path.write_text(page(gather(run_dir)), encoding="utf-8")
    return path
