"""The report of a run as one HTML page without network, script or other files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoint.durable_io import open_output
from .data import report_data
from .gallery import Look
from .page import page


def write_report(
    run_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    thumbnail: Callable[[int], Any] | None = None,
    describe: Callable[[int], object] | None = None,
    other: str | os.PathLike[str] | None = None,
    precision: float = 0.5,
) -> Path:
    """Write the report of a run.

    Args:
        run_dir: The run folder; the run may still go on.
        out: The file to write.
        thumbnail: Returns a picture of a sample, given its index, for the gallery of the 48 most suspect ones: an array
            [H, W], [H, W, C] or [C, H, W] with 1 to 4 channels (integers in [0, 255], floats in [0, 1] or any range,
            which is then stretched), bytes of a PNG or JPEG file of at most 64 kB, or None. Arrays are averaged down to
            96 pixels a side. Pictures are embedded in the page, 2 MB at most; those beyond are left out.
        describe: Returns a text on a sample, given its index, to be shown with it.
        other: The folder of a run to compare with.
        precision: Least share of the suspects to be wrong, as for `SampleTable.suspects`.

    Returns:
        Its path.

    Raises:
        UnreadableRun: the folder holds no run.
        OSError: the file cannot be written, or is a link.
        TypeError, ValueError: a picture is none of these; then nothing is written.
    """
    path = Path(out)
    compared = None if other is None else report_data(other)
    text = page(report_data(run_dir, precision), Look(thumbnail, describe), compared)
    with open(open_output(path), "w", encoding="utf-8") as file:
        file.write(text)
    return path
