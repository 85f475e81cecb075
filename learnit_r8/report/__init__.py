"""The report of a run as one HTML page without network, script or other files."""

from __future__ import annotations

import os
from pathlib import Path

from .data import report_data
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
        OSError: the file cannot be written.
    """
    path = Path(out)
    path.write_text(page(report_data(run_dir)), encoding="utf-8")
    return path
