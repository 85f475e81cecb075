"""The plain log: a line for every epoch, every event and every minute, on stderr; no control characters."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import sys
import threading
from typing import TextIO

from .. import events
from ..events.condenser import Condenser
from ..events.event import describe
from ..events.text import clock
from .state.view import View

SECONDS_BETWEEN_LINES = 60.0

LAST_SECONDS = 1.0
"""Longest wait at the end for a terminal that does not read."""


class PlainLog:
    """A listener that prints one line for every epoch and every event, and one a minute in between.

    Args:
        stream: Takes the lines; by default ``sys.stderr`` at the time of each line.
    """

    is_on_terminal = True

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._view = View()
        self._condenser = Condenser(self._hear)
        self._last_line = -math.inf
        self._writer = AsyncWriter()

    def __call__(self, event: events.Event) -> None:
        """Print the event's line, if it has one."""
        self._condenser(event)

    def _hear(self, event: events.Event) -> None:
        self._view.fold(event)
        line = self._line(event)
        if line:
            self._last_line = event.seconds
            self.say(line)
        if isinstance(event, events.RunEnded):
            self._writer.finish(LAST_SECONDS)

    def say(self, line: str) -> None:
        """Print a line; does not wait for a terminal."""
        text = "r8 " + "".join(character if character.isprintable() else "?" for character in line) + "\n"
        stream = self._stream or sys.stderr
        with contextlib.suppress(AttributeError, OSError, ValueError):
            # What the program printed comes first, and whole: into one file, the lines would else run into each other.
            sys.stdout.flush()
        # None where the program was started with stderr closed.
        if stream is None:
            return
        if stream.isatty():
            self._writer.write(stream.fileno(), text)
        else:
            stream.write(text)
            stream.flush()

    def _line(self, event: events.Event) -> str:
        view = self._view
        match event:
            case events.StepsDone():
                is_due = event.seconds - self._last_line >= SECONDS_BETWEEN_LINES
                return f"{self._where(event.loss, event.lr)}  {self._left}" if is_due else ""
            case events.EpochDone():
                speed = f"{event.samples_per_second:,.0f} samples/s"
                return f"{self._where(event.loss, event.lr)}  {speed}  {self._left}"
            case events.RunStarted():
                budget = f"{event.total_steps} steps" if event.total_steps else "no end set yet"
                if not event.total_steps and event.train_duration_seconds is not None:
                    budget = f"{event.train_duration_seconds:g} s"
                return f"{event.name or 'run'}: {event.data}, {budget}"
            case events.Notice():
                return "" if event.is_warning else event.text
            case events.BatchAbandoned():
                return ""
            case events.RunEnded():
                return f"{event.how} after {view.step:,} steps, {clock(event.seconds)}"
        said = describe(event)
        return "" if said is None else f"step {event.step}: {said.text}"

    def _where(self, loss: float, lr: float) -> str:
        # NaN where the rate is the user's own and was never told.
        rate = f"  lr {lr:.3g}" if math.isfinite(lr) else ""
        return f"epoch {self._view.epoch_text} step {self._view.step_text}  loss {loss:.4g}{rate}"

    @property
    def _left(self) -> str:
        return f"left {clock(self._view.time_left(self._view.seconds))}"


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
