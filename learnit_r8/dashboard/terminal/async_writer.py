"""A writer with a thread of its own: a terminal that does not read must not stop the training.

It writes to the descriptor, because a thread that is stuck inside ``sys.stderr`` at exit is a fatal error of Python.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading

MOST_WAITING = 1000


class AsyncWriter:
    """Writes lines in order, and drops lines while a thousand of them wait."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[int, bytes] | threading.Event] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None

    def write(self, descriptor: int, text: str) -> None:
        """Queue a text for a descriptor. Never waits."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait((descriptor, text.encode("utf-8", errors="replace")))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="r8-lines", daemon=True)
            self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Wait until everything is written, at most some seconds; returns whether it is."""
        if self._thread is None:
            return True
        done = threading.Event()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(done)
        return done.wait(seconds)

    def _run(self) -> None:
        while True:
            task = self._waiting.get()
            if isinstance(task, threading.Event):
                task.set()
                continue
            descriptor, data = task
            with contextlib.suppress(OSError):
                while data:
                    data = data[os.write(descriptor, data) :]
