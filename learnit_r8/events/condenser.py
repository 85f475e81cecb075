"""The condenser: one event for many steps, so that screens and journals cost little however fast the steps are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from . import Event, Listener, StepDone, StepsDone

EVERY_SECONDS = 0.25
"""Least time between two events of steps; a screen draws four frames a second."""

FIRST, SHARE = 256, 1 / 200
"""The first steps are not gathered, later ones over this share of the training so far at most: a short run has some
hundred points, too."""


class Condenser:
    """A listener that sends another one `StepsDone` in place of every `StepDone`, and passes on all other events.

    It keeps the order: it sends gathered steps before the event after them. Live screen, journal and replay get the
    same events, and so show the same.

    Args:
        listener: Gets the events.
        every_seconds: Training seconds for which steps are gathered at most, >= 0.
        first: Number of records that are of one step each, >= 0.
    """

    def __init__(self, listener: Listener, *, every_seconds: float = EVERY_SECONDS, first: int = FIRST) -> None:
        self._listener = listener
        self._every, self._first = every_seconds, first
        self._due, self._began, self._num_sent = -math.inf, math.inf, 0
        self._last: StepDone | StepsDone | None = None
        self._clear()

    def _clear(self) -> None:
        self._num = self._samples = self._steady = self._known = 0
        self._loss = self._expected = self._own = self._data = 0.0
        self._lowest, self._highest, self._suspicion = math.inf, -math.inf, 0.0

    def __call__(self, event: Event) -> None:
        """Gather a step, or pass on another event."""
        if type(event) is not StepDone:
            self.flush()
            self._listener(event)
            return
        loss = event.loss
        self._num += 1
        self._loss += loss
        if loss < self._lowest:
            self._lowest = loss
        if loss > self._highest:
            self._highest = loss
        self._samples += event.batch_size
        self._own += event.own_seconds
        self._data += event.data_seconds
        if event.suspicion > self._suspicion:
            self._suspicion = event.suspicion
        self._steady += event.steady
        expected = event.expected_loss
        if expected == expected:
            self._expected += expected
            self._known += 1
        self._last = event
        # Also if the time is NaN, as in a damaged file.
        if not event.seconds <= self._due:
            self.flush()

    def add(self, part: StepsDone) -> None:
        """Gather steps that were condensed before; `flush` sends them."""
        self._num += part.num_steps
        self._loss += part.loss * part.num_steps
        self._lowest, self._highest = min(self._lowest, part.lowest), max(self._highest, part.highest)
        self._samples += part.samples
        self._own += part.own_seconds
        self._data += part.data_seconds
        self._suspicion = max(self._suspicion, part.suspicion)
        self._steady += part.num_steady
        if math.isfinite(part.expected_loss):
            self._expected += part.expected_loss * part.num_steps
            self._known += part.num_steps
        self._last = part

    def flush(self) -> None:
        """Send the steps gathered so far, if any."""
        last = self._last
        if last is None:
            return
        condensed = StepsDone(
            step=last.step, seconds=last.seconds, epoch=last.epoch, progress=last.progress, lr=last.lr,
            num_steps=self._num, samples=self._samples, loss=self._loss / self._num, lowest=self._lowest,
            highest=self._highest, last_loss=last.loss if isinstance(last, StepDone) else last.last_loss,
            expected_loss=self._expected / self._known if self._known else math.nan, num_steady=self._steady,
            own_seconds=self._own, data_seconds=self._data, suspicion=self._suspicion,
        )  # fmt: skip
        self._began, self._num_sent = min(self._began, last.seconds), self._num_sent + 1
        wait = min(self._every, SHARE * (last.seconds - self._began))
        self._due = -math.inf if self._num_sent < self._first else last.seconds + wait
        self._last = None
        self._clear()
        self._listener(condensed)


def steps_of(event: StepDone) -> StepsDone:
    """One step as a record of steps."""
    return _condensed(Condenser.__call__, [event])


def merged(parts: Sequence[StepsDone]) -> StepsDone:
    """One record for several in a row; at least one."""
    return parts[0] if len(parts) == 1 else _condensed(Condenser.add, parts)


def _condensed(gather: Callable[[Condenser, Any], None], parts: Sequence[Event]) -> StepsDone:
    heard: list[Any] = []
    condenser = Condenser(heard.append)
    for part in parts:
        gather(condenser, part)
    condenser.flush()
    (whole,) = heard
    return whole  # type: ignore[no-any-return]
