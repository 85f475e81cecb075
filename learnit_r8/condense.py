"""The condenser: many steps become one event, so that screens and journals cost little however fast the steps are."""

from __future__ import annotations

import math

from .events import Event, Listener, StepDone, StepsDone

EVERY_SECONDS = 0.25
"""Least time between two events of steps: four a second are as many as a screen draws."""


class Condenser:
    """A listener that tells another one `StepsDone` in place of every `StepDone`, and all other events as they come.

    The order stays: steps that wait are told before the event that ends them. Live screen, journal and replay hear
    the same, and so show the same.

    Args:
        listener: Who is told.
        every_seconds: Steps are gathered for this long, in training seconds, >= 0.
    """

    def __init__(self, listener: Listener, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._listener = listener
        self._every = every_seconds
        self._due = -math.inf
        self._last: StepDone | None = None
        self._clear()

    @property
    def wants_surveys(self) -> bool:
        """Whether the listener does."""
        return bool(getattr(self._listener, "wants_surveys", False))

    def _clear(self) -> None:
        self._num = self._samples = self._steady = self._known = 0
        self._loss = self._expected = self._own = self._data = 0.0
        self._lowest, self._highest, self._suspicion = math.inf, -math.inf, 0.0

    def __call__(self, event: Event) -> None:
        """Gather a step, or pass on what is none."""
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
        # Also where the time is no number, as it may be in a damaged file.
        if not event.seconds < self._due:
            self.flush()

    def flush(self) -> None:
        """Tell the steps gathered so far, if there are any."""
        last = self._last
        if last is None:
            return
        condensed = StepsDone(
            step=last.step,
            seconds=last.seconds,
            epoch=last.epoch,
            progress=last.progress,
            num_steps=self._num,
            samples=self._samples,
            loss=self._loss / self._num,
            lowest=self._lowest,
            highest=self._highest,
            last_loss=last.loss,
            expected_loss=self._expected / self._known if self._known else math.nan,
            lr=last.lr,
            num_steady=self._steady,
            own_seconds=self._own,
            data_seconds=self._data,
            suspicion=self._suspicion,
        )
        self._due = last.seconds + self._every
        self._last = None
        self._clear()
        self._listener(condensed)


def steps_of(event: StepDone) -> StepsDone:
    """One step as the event of several."""
    heard: list[Event] = []
    Condenser(heard.append)(event)
    assert isinstance(heard[0], StepsDone)
    return heard[0]
