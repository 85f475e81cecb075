"""The report of a run as one HTML page without network, script or other files."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..journal.samples import samples_of
from ..state.durable_io import open_output
from ..table.table import SampleTable
from .document import document
from .page import content_of, report_data
from .samples import Look, SamplesData, samples_page

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler


HEIGHT = 720
"""Pixels of the frame, in which a longer page is scrolled."""


def write_report(
    run_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, thumbnail: Callable[[int], Any] | None = None,
    describe: Callable[[int], object] | None = None, precision: float = 0.5,
) -> Path:  # fmt: skip
    """Write the report of a run.

    Args:
        run_dir: The run folder; the run may still go on.
        out: The file to write.
        thumbnail: Returns a picture of a sample, given its index, for the gallery of the 48 most suspect ones: an array
            [H, W], [H, W, C] or [C, H, W] with 1 to 4 channels (integers in [0, 255], floats in [0, 1] or any range,
            which is then stretched), bytes of a PNG or JPEG file of at most 64 kB, or None. Arrays are averaged down to
            96 pixels a side. Pictures are embedded in the page, 2 MB at most; those beyond are left out.
        describe: Returns a text on a sample, given its index, to be shown with it.
        precision: Least share of the suspects to be wrong, as for `SampleTable.suspects`.

    Returns:
        Its path.

    Raises:
        UnreadableRun: the folder holds no run.
        OSError: the file cannot be written, or is a link.
        TypeError, ValueError: a picture is none of these; then nothing is written.
    """
    if not isinstance(run_dir, (str, os.PathLike)):
        raise TypeError(f"run_dir must be a run folder, such as r8.run_dir, got {run_dir!r}.")
    path = Path(out)
    content = content_of(report_data(run_dir, precision), Look(thumbnail, describe))
    with open(open_output(path), "w", encoding="utf-8") as file:
        file.write(document(content, has_pictures=thumbnail is not None))
    return path


class DataView:
    """Shows how the samples were learnt, as the last line of a notebook's cell: a page in a frame, without scripts.

    Args:
        source: The folder of a run, its scheduler, or its table; of the last two, the samples as they are now.
        thumbnail, describe: As for `write_report`.
        precision: Least share of the suspects to be wrong, as for `SampleTable.suspects`.

    Raises:
        UnreadableRun: the folder holds no run.
        TypeError: the source is none of these.
        ValueError: nothing has been learned of any sample.
    """

    def __init__(
        self, source: str | os.PathLike[str] | R8Scheduler | SampleTable, *,
        thumbnail: Callable[[int], Any] | None = None, describe: Callable[[int], object] | None = None,
        precision: float = 0.5,
    ) -> None:  # fmt: skip
        if isinstance(source, (str, os.PathLike)):
            data = report_data(source, precision).samples
        else:
            table = getattr(source, "table", source)
            if not isinstance(table, SampleTable):
                raise TypeError(f"source must be a run folder, a scheduler or its table, got {source!r}.")
            data = SamplesData.of([samples_of(table, 0, 0)], precision) if table.num_seen else None
        if data is None:
            raise ValueError("source must have learned of some samples, got none: look again after the first epoch.")
        self._page = samples_page(data, Look(thumbnail, describe))

    def _repr_html_(self) -> str:
        frame = f'style="width:100%;height:{HEIGHT}px;border:0" srcdoc="{html.escape(self._page)}"'
        return f'<iframe title="how the samples were learnt" {frame}></iframe>'
