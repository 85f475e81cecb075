"""Background writing: a separate thread writes a checkpoint's file, or the caller's thread does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reader import Checkpoint

LARGE = 2**17
"""Samples from which a run does not wait until their table, of 2 MB, is on the disk: to copy it takes a millisecond."""


class BackgroundWrite:
    """A checkpoint whose file is being written.

    Args:
        write: Writes the file and returns its path; called in the thread, if there is one.
        finish: Takes the path, or None if writing failed, and returns the checkpoint; called in the caller's thread.
        interrupted: Called if writing was interrupted, so that it has neither succeeded nor failed.
        in_background: Whether a thread writes; otherwise `result` does. If the program ends before the thread has
            finished, there is no file, and the previous checkpoint counts.
    """

    def __init__(
        self,
        write: Callable[[], Path],
        finish: Callable[[Path | None], Checkpoint | None],
        interrupted: Callable[[], None],
        *,
        in_background: bool,
    ) -> None:
        self._write, self._finish, self._interrupted = write, finish, interrupted
        self._path: Path | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if in_background:
            self._thread = threading.Thread(target=self._run, name="learnit_r8 checkpoint", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._path = self._write()
        except BaseException as error:
            self._error = error

    @property
    def is_done(self) -> bool:
        """Whether `result` returns without waiting."""
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> Checkpoint:
        """Wait for the checkpoint and return it; must be called once.

        Raises:
            TypeError: a value cannot be saved.
            OSError: the write failed; earlier checkpoints are unchanged.
        """
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        if self._error is not None and not isinstance(self._error, Exception):
            self._interrupted()
            raise self._error
        saved = self._finish(self._path)
        if saved is None:
            assert self._error is not None
            raise self._error
        return saved
