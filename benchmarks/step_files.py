"""How many files of the package one step leads through: the distinct ones that run in a draw, a report and a frame.

Traced are the functions of all threads. An ordinary step is a draw from a chunk that is planned, and a good report; the
same with a frame of the screen; and a full step, which plans a chunk, takes a backup and is recorded in a journal.

    python benchmarks/step_files.py [--names]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import learnit_r8
from learnit_r8 import R8Scheduler
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.state.ui_state import UiState
from learnit_r8.dashboard.state.view import View

PACKAGE = Path(learnit_r8.__file__).parent
SAMPLES, BATCH = 50_000, 32


def files_of(function: Callable[[], object]) -> set[str]:
    """The files of the package of which any function runs while ``function`` does, in any thread."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return {str(Path(name).relative_to(PACKAGE)) for name in seen if name.startswith(f"{PACKAGE}/")}


class Loop:
    """The loop of a user, one step at a time.

    Args:
        given: Further arguments of `R8Scheduler`.
    """

    def __init__(self, **given: Any) -> None:
        self.r8 = R8Scheduler(SAMPLES, batch_size=BATCH, num_epochs=100, handle_signals=False, **given)

    def step(self) -> None:
        """Draw a batch and report its loss."""
        ticket = self.r8.draw()
        self.r8.report(ticket, 1.0 + 0.1 * np.sin(ticket.step))

    def step_to(self, step: int) -> None:
        """Make steps until so many are made."""
        while self.r8.pace.step < step:
            self.step()


def ordinary() -> set[str]:
    """The files of an ordinary step, in the second epoch."""
    loop = Loop()
    loop.step_to(loop.r8.steps_per_epoch + 10)
    return files_of(loop.step)


def seen() -> set[str]:
    """The files of an ordinary step that a screen shows, and of the frame."""
    view = View()
    loop = Loop(listeners=[view.fold])
    loop.step_to(loop.r8.steps_per_epoch + 10)
    return files_of(lambda: (loop.step(), render(view, UiState(), 120, 40)))


def full() -> set[str]:
    """The files of a step with all that may be due, and of a frame."""
    view, weights = View(), np.zeros(4)
    with tempfile.TemporaryDirectory() as folder:
        given = {"state_callback": lambda: weights, "load_callback": print, "backup_every": 1, "run_dir": folder}
        loop = Loop(listeners=[view.fold], **given)
        # The first step of the second epoch plans a chunk.
        loop.step_to(loop.r8.steps_per_epoch)
        found = files_of(lambda: (loop.step(), render(view, UiState(), 120, 40), time.sleep(0.5)))
        loop.r8.close()
    return found


def main() -> None:
    """Print the numbers of files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="print their names, too")
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    names = parser.parse_args().names
    kinds = {"an ordinary step": ordinary, "the same and a frame": seen, "a full step and a frame": full}
    for label, found in ((label, trace()) for label, trace in kinds.items()):
        print(f"{label}: {len(found)} files")
        if names:
            print(*(f"    {name}" for name in sorted(found)), sep="\n")


if __name__ == "__main__":
    main()
