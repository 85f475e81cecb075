"""A clock for tests."""

from __future__ import annotations

import math

from .._validation import is_number


class FakeClock:
    """A clock that stands still until `advance`; for the argument ``clock`` of `R8Scheduler`.

    >>> clock = FakeClock()
    >>> clock.advance(1.5)
    >>> clock()
    1.5
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: the seconds are negative; a monotonic clock never goes back.
        """
        if not (is_number(seconds) and 0 <= seconds < math.inf):
            raise ValueError(f"seconds must be a finite number >= 0, got {seconds!r}.")
        self.now += seconds
