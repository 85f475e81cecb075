"""The journal of a scheduler, and its run folder."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.durable_io import NotOwnFile, make_first_free, numbered
from ..events import RunControl, launcher
from ..events.caller import warn
from ..events.system import SystemMonitor
from ..table.table import SampleTable
from .run import runs_folder
from .samples import samples_of
from .writer import Journal


def open_journal(
    run_dir: str | os.PathLike[str] | bool | None,
    *,
    is_shown: bool,
    name: str,
    configuration: Mapping[str, str],
    table: SampleTable,
    requests: RunControl | None = None,
) -> Journal | None:
    """The journal that R8Scheduler's ``run_dir`` asks for; None without one, and on all ranks but the first.

    Args:
        run_dir: A folder; True for a new one in `runs_folder`; None for a new one if the run is shown, else for no
            journal; False for no journal.
        is_shown: Whether the dashboard is on.
        name: Name of the run.
        configuration: The arguments of the scheduler.
        table: The losses and uses of the samples.
        requests: Takes what is asked for by files in the run folder.

    Raises:
        TypeError: ``run_dir`` is none of these.
        ValueError: another process writes there, or the name is empty.
        OSError: a file is in the way of a folder that was asked for, or something in it is not this user's. Where the
            disk is full or cannot be written, a warning says that the run is not recorded.
    """
    if not (run_dir is None or isinstance(run_dir, (str, os.PathLike, bool))):
        raise TypeError(f"run_dir must be a folder, True, False or None, got {run_dir!r}.")
    if run_dir == "":
        # "" would be the current folder; most likely a variable was not set.
        raise ValueError("run_dir must be a folder, True, False or None, got ''.")
    if run_dir is False or (run_dir is None and not is_shown) or launcher.rank_of() > 0:
        return None
    make = functools.partial(
        Journal,
        name=name,
        configuration=configuration,
        samples=functools.partial(samples_of, table) if table.num_samples or table.storage.ids is not None else None,
        requests=requests,
        machine=SystemMonitor().load,
    )
    is_named = not (run_dir is None or run_dir is True)
    try:
        return make(run_dir if isinstance(run_dir, (str, os.PathLike)) else _new_folder(runs_folder(), name))
    except OSError as error:
        if is_named and isinstance(error, (FileExistsError, NotADirectoryError)):
            raise type(error)(f"run_dir must be a folder, or a path where one can be made, got {run_dir!r}.") from error
        if run_dir and isinstance(error, (FileExistsError, NotADirectoryError, NotOwnFile)):
            raise
        where = os.fspath(run_dir) if is_named else str(runs_folder())  # type: ignore[arg-type]
        warn(
            f"the run is not recorded, as nothing can be written to the run folder in {where!r}: {error}. Training "
            "goes on. Free or mend that disk, or give another run_dir."
        )
        return None


def _new_folder(parent: Path, name: str) -> Path:
    """Make the folder ``<time>-<name>``, with a number added if it exists."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in name)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{plain[:60] or 'run'}"
    return make_first_free(numbered(parent / stem), lambda folder: folder.mkdir(parents=True))
