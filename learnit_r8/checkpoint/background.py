"""A checkpoint that is being written, by a thread of its own or by the one that asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from .reader import Checkpoint


class Writing:
    """A checkpoint whose file is being written.

    Args:
        write: Writes the file and returns its path; in the thread, if there is one.
        finish: Called with the path, or with None where writing failed; returns the checkpoint. In the caller's thread.
        interrupted: Called where writing was neither done nor refused.
        in_background: Whether a thread writes. Where the program ends before it is done the file is not there: the
            checkpoint before counts.
    """

    def __init__(
        self,
        write: Callable[[], Path],
        finish: Callable[[Path | None], Checkpoint | None],
        interrupted: Callable[[], None],
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
        """Whether `result` need not wait."""
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> Checkpoint:
        """The checkpoint, once it is written; to be called once.

        Raises:
            TypeError: a value that cannot be saved.
            OSError: the disk refused; the checkpoints before are untouched.
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
