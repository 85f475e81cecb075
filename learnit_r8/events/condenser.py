"""The condenser: one event for many steps, so that screens and journals cost little however fast the steps are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

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
        self._gathered: list[StepsDone] = []

    def __call__(self, event: Event) -> None:
        """Gather a step, or pass on another event."""
        if type(event) is not StepDone:
            self.flush()
            self._listener(event)
            return
        self._gathered.append(steps_of(event))
        # Also if the time is NaN, as in a damaged file.
        if not event.seconds <= self._due:
            self.flush()

    def flush(self) -> None:
        """Send the steps gathered so far, if any."""
        if not self._gathered:
            return
        whole, self._gathered = merged(self._gathered), []
        self._began, self._num_sent = min(self._began, whole.seconds), self._num_sent + 1
        wait = min(self._every, SHARE * (whole.seconds - self._began))
        self._due = -math.inf if self._num_sent < self._first else whole.seconds + wait
        self._listener(whole)


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
    num_steps = sum(each.num_steps for each in parts)
    known = [each for each in parts if math.isfinite(each.expected_loss)]
    expected = sum(each.expected_loss * each.num_steps for each in known)
    return replace(
        parts[-1], num_steps=num_steps, samples=sum(each.samples for each in parts),
        loss=sum(each.loss * each.num_steps for each in parts) / num_steps,
        lowest=min(math.inf, *(each.lowest for each in parts)),
        highest=max(-math.inf, *(each.highest for each in parts)),
        expected_loss=expected / sum(each.num_steps for each in known) if known else math.nan,
        num_steady=sum(each.num_steady for each in parts), own_seconds=sum(each.own_seconds for each in parts),
        data_seconds=sum(each.data_seconds for each in parts),
        suspicion=max(0.0, *(each.suspicion for each in parts)),
    )  # fmt: skip
