"""The budget: how much training there is, in steps or in seconds, and how much of it is done."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .._validation import is_number


@dataclass(frozen=True)
class Budget:
    """A number of steps or a number of seconds.

    Attributes:
        steps: Steps to do, or None.
        seconds: Wall time to spend, or None.

    >>> Budget(steps=200).progress(step=50, seconds=9.0)
    0.25
    >>> Budget(seconds=60.0).progress(step=50, seconds=15.0)
    0.25
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def of(
        cls, num_epochs: float | None, num_steps: int | None, train_duration_seconds: float | None, steps_per_epoch: int
    ) -> Budget:
        """The budget that R8Scheduler's arguments stand for.

        Raises:
            ValueError: none or several of the three are given, or one is not positive and finite.
        """
        given = {"num_epochs": num_epochs, "num_steps": num_steps, "train_duration_seconds": train_duration_seconds}
        chosen = {name: value for name, value in given.items() if value is not None}
        if len(chosen) != 1:
            raise ValueError(f"exactly one of {', '.join(given)} must be given, got {chosen or 'none of them'}.")
        for name, value in chosen.items():
            if not (is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{name} must be a number > 0 and finite, got {value!r}.")
        if num_epochs is not None:
            return cls(steps=math.ceil(num_epochs * steps_per_epoch))
        if num_steps is not None and num_steps != int(num_steps):
            raise ValueError(f"num_steps must be a whole number, got {num_steps!r}.")
        return cls(steps=None if num_steps is None else int(num_steps), seconds=train_duration_seconds)

    def progress(self, step: int, seconds: float) -> float:
        """Finished share, in [0, 1]; 1.0 means stop."""
        done = step / self.steps if self.steps is not None else seconds / (self.seconds or math.inf)
        return min(1.0, done)


class Stopwatch:
    """Wall time spent training: counts from the first start, not while paused and not between two processes.

    Readings are handed in, so that a decision reads the clock once. One that is lower than the one before, of a clock
    that was set back, counts as no time: from there it goes on.
    """

    def __init__(self) -> None:
        self._spent = 0.0
        # When counting began, and the reading before: one tuple, for threads that ask at once.
        self._running: tuple[float, float] | None = None

    @property
    def is_running(self) -> bool:
        """Whether time is being counted."""
        return self._running is not None

    def start(self, now: float) -> None:
        """Count from here; nothing happens if it is running."""
        if self._running is None:
            self._running = (now, now)

    def pause(self, now: float) -> None:
        """Stop counting until the next `start`."""
        self._spent = self.seconds(now)
        self._running = None

    def seconds(self, now: float) -> float:
        """Seconds counted so far."""
        running = self._running
        if running is None:
            return self._spent
        since, last = running
        if now < last:
            # The beginning goes back with the clock.
            since -= last - now
        self._running = (since, now)
        return self._spent + (now - since)

    def reset(self, seconds: float, now: float) -> None:
        """Have counted ``seconds`` by now; a running watch goes on running."""
        self._spent = seconds
        self._running = None if self._running is None else (now, now)
