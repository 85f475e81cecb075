"""Progress bars, one line that says how far a loop has come and what its metrics are; and the logger for wandb."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from .._validation import import_needed
from ..streams.stages import as_scalar
from ..triggers import Elapsed
from .elapsed_data import Period, as_stop
from .run import LoopState

SHOWN = ("metrics", "stateful_metrics", "losses")
"""Collections whose entries bars and loggers show."""

WIDTH = 30


def shown_values(logs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of a row to show, read from their device.

    >>> shown_values({"metrics": {"loss": 0.5, "each": [1, 2]}, "outputs": {"y": 3.0}})
    {'loss': 0.5}
    """
    found = {}
    for collection in SHOWN:
        for name, value in logs.get(collection, {}).items():
            number = as_scalar(value)
            if isinstance(number, (int, float)):
                found[name] = float(number)
    return found


def bar_line(elapsed: Elapsed, total: Period | None, values: Mapping[str, float]) -> str:
    """The line: count, bar, time, metrics; printable characters only.

    >>> bar_line(Elapsed(steps=5, time=2.0), Period(steps=10), {"loss": 0.25})
    '5/10 [===============>..............] - ETA: 2s - loss: 0.2500'
    """
    rate = elapsed.time / elapsed.steps if elapsed.steps else 0.0
    each = f"{rate:.0f}s" if rate >= 1 else f"{1e3 * rate:.0f}ms" if rate >= 1e-3 else f"{1e6 * rate:.0f}us"
    pace = f"{elapsed.time:.0f}s {each}/step"
    if total is None:
        parts = [f"{elapsed.steps} steps", pace]
    else:
        share = min(total.share(elapsed), 1.0)
        unit, limit = max(total.limits(), key=lambda one: getattr(elapsed, one[0]) / one[1] if one[1] else 1.0)
        left = f"ETA: {elapsed.time * (1 - share) / share:.0f}s" if 0 < share < 1 else pace
        full = int(share * WIDTH)
        drawn = "=" * full + (">" + "." * (WIDTH - full - 1) if full < WIDTH else "")
        parts = [f"{_count(unit, getattr(elapsed, unit))}/{_count(unit, limit)} [{drawn}]", left]
    parts += [f"{name}: {value:.4f}" for name, value in values.items()]
    return "".join(sign for sign in " - ".join(parts) if sign.isprintable())


def _count(unit: str, value: float) -> str:
    return f"{value:.0f}s" if unit == "time" else f"{value:.0f}"


class keras_bar:
    """A progress bar like Keras', with the newest value of each metric.

    Values are read from their device only when the line is drawn. If the stream is not a terminal, it prints a line a
    minute and one at the end. In your own loop, call it with `Elapsed` and logs, and ``close()`` it at the end.

    Args:
        total: How long the run is: steps, a time such as "5min", a `Period` or ``at(...)``; by default the loop's stop.
        interval: Least seconds between two drawings, >= 0.
        stream: Where to write; by default the current ``sys.stdout``.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, total: Any = None, *, interval: float = 0.1, stream: IO[str] | None = None) -> None:
        length = None if total is None else as_stop("total", total)
        if not isinstance(length, (Period, type(None))):
            raise ValueError(f"total must be a number of steps >= 0, a time or a Period, got {total!r}.")
        self._total = length
        if not (isinstance(interval, (int, float)) and interval >= 0):
            raise ValueError(f"interval must be seconds >= 0, got {interval!r}.")
        self._interval, self._stream = interval, stream
        self._forget()

    def _forget(self) -> None:
        self._drawn_at: float | None = None
        self._width = 0
        self._elapsed: Elapsed | None = None
        self._latest: dict[str, dict[str, Any]] = {}
        self._length = self._total

    def __call__(self, elapsed: Elapsed, logs: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Take a step's logs, and draw if it is time."""
        self._note(elapsed, logs or {})
        now = time.monotonic()
        first = self._drawn_at is None
        if first or now - (self._drawn_at or 0.0) >= (self._interval if self._is_terminal() else 60.0):
            self._drawn_at = now
            if self._is_terminal() or not first:
                self._draw()

    def _note(self, elapsed: Elapsed, logs: Mapping[str, Mapping[str, Any]]) -> None:
        self._elapsed = elapsed
        for collection in SHOWN:
            if collection in logs:
                self._latest.setdefault(collection, {}).update(logs[collection])

    def on_start(self, loop_state: LoopState) -> None:
        """Begin a new line."""
        self._forget()
        self._length = loop_state.total if self._total is None else self._total

    def on_step(self, loop_state: LoopState) -> None:
        """Take this step's logs."""
        self(loop_state.elapsed, loop_state.logs)

    def on_end(self, loop_state: LoopState) -> None:
        """Draw the last state and end the line."""
        if self._elapsed is not None:
            self._note(loop_state.elapsed, loop_state.logs)
        self.close()

    def close(self) -> None:
        """Draw the last state and end the line; nothing happens if there is none."""
        if self._elapsed is None:
            return
        self._draw()
        if self._is_terminal():
            self._file().write("\n")
            self._file().flush()
        self._forget()

    def _file(self) -> IO[str]:
        return self._stream or sys.stdout

    def _is_terminal(self) -> bool:
        return bool(getattr(self._file(), "isatty", bool)())

    def _draw(self) -> None:
        assert self._elapsed is not None
        line = bar_line(self._elapsed, self._length, shown_values(self._latest))
        if self._is_terminal():
            self._file().write("\r" + line + " " * (self._width - len(line)))
            self._width = len(line)
        else:
            self._file().write(line + "\n")
        self._file().flush()


class wandb:
    """Send metrics, stateful metrics and losses of each step to Weights & Biases.

    Args:
        run: Your own run, which stays open; by default the loop starts and finishes one.
        **options: For ``wandb.init``.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        self._wandb: Any = (
            None if run is not None else import_needed("wandb", "wandb() needs wandb", "pip install wandb")
        )
        self._given, self._options = run, options
        self._run: Any = run

    def on_start(self) -> None:
        """Begin a run, unless one was given."""
        if self._given is None:
            self._run = self._wandb.init(**self._options)

    def on_step(self, loop_state: LoopState) -> None:
        """Send what this step has logged."""
        values = shown_values(loop_state.logs)
        if values:
            self._run.log(values, step=loop_state.elapsed.steps)

    def on_end(self, loop_state: LoopState) -> None:
        """Send the remaining logs, and finish the run if this logger has started it."""
        self.on_step(loop_state)
        if self._given is None and self._run is not None:
            self._run.finish()
            self._run = None
