"""The condenser: one event for many steps, so that screens and journals cost little however fast the steps are."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        self._last: StepsDone | None = None
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
        self.add(steps_of(event))
        # Also if the time is NaN, as in a damaged file.
        if not event.seconds <= self._due:
            self.flush()

    def add(self, part: StepsDone) -> None:
        """Gather steps; `flush` sends them."""
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
            highest=self._highest, last_loss=last.last_loss,
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
    loss = event.loss
    return StepsDone(
        step=event.step, seconds=event.seconds, epoch=event.epoch, progress=event.progress, lr=event.lr, num_steps=1,
        samples=event.batch_size, loss=loss, lowest=loss, highest=loss, last_loss=loss,
        expected_loss=event.expected_loss, num_steady=int(event.steady), own_seconds=event.own_seconds,
        data_seconds=event.data_seconds, suspicion=max(0.0, event.suspicion),
    )  # fmt: skip


def merged(parts: Sequence[StepsDone]) -> StepsDone:
    """One record for several in a row; at least one."""
    heard: list[Any] = []
    condenser = Condenser(heard.append)
    for part in parts:
        condenser.add(part)
    condenser.flush()
    (whole,) = heard
    return whole  # type: ignore[no-any-return]
