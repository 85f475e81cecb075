"""The plain log: a line for every epoch, every event and every minute, on stderr; no control characters."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import sys
import threading
from typing import TextIO

from .. import events
from ..events.event import describe

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
        self._run: events.RunStarted | None = None
        self._last_line = -math.inf
        self._writer = AsyncWriter()

    def __call__(self, event: events.Event) -> None:
        """Print the event's line, if it has one."""
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
        match event:
            case events.StepDone():
                is_due = event.seconds - self._last_line >= SECONDS_BETWEEN_LINES
                return f"{self._where(event)}  {_left(event)}" if is_due else ""
            case events.EpochDone():
                speed = event.samples / event.epoch_seconds if event.epoch_seconds > 0 else math.nan
                return f"{self._where(event)}  {speed:,.0f} samples/s  {_left(event)}"
            case events.RunStarted():
                self._run = event
                budget = f"{event.total_steps} steps" if event.total_steps else "no end set yet"
                if not event.total_steps and event.train_duration_seconds is not None:
                    budget = f"{event.train_duration_seconds:g} s"
                return f"{event.name or 'run'}: {event.data}, {budget}"
            case events.CoolDownBegan():
                if self._run is not None:
                    total, seconds = event.total_steps, event.train_duration_seconds
                    self._run = dataclasses.replace(self._run, total_steps=total, train_duration_seconds=seconds)
            case events.Notice():
                return "" if event.is_warning else event.text
            case events.BatchAbandoned():
                return ""
            case events.RunEnded():
                return f"{event.how} after {event.step} steps, {_clock(event.seconds)}"
        said = describe(event)
        return "" if said is None else f"step {event.step}: {said.text}"

    def _where(self, event: events.StepDone | events.EpochDone) -> str:
        run, epochs, steps = self._run, "", ""
        if run is not None and run.total_steps is not None:
            each = run.steps_per_epoch
            epochs, steps = f"/{math.ceil(run.total_steps / each)}" if each else "", f"/{run.total_steps}"
        where = f"epoch {event.epoch + 1}{epochs} step {event.step}{steps}"
        # NaN where the rate is the user's own and was never told.
        return f"{where}  loss {event.loss:.4g}" + (f"  lr {event.lr:.3g}" if math.isfinite(event.lr) else "")


def _left(event: events.StepDone | events.EpochDone) -> str:
    seconds = event.seconds * (1 - event.progress) / event.progress if event.progress > 0 else math.nan
    return f"left {_clock(seconds)}"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
