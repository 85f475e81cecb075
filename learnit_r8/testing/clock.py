"""A clock that is turned by hand."""

from __future__ import annotations

import math

from ..checks import is_number


class FakeClock:
    """Seconds that pass only when told to; for the argument ``clock`` of `R8Scheduler`.

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
        """Let so many seconds pass.

        Raises:
            ValueError: they are negative; clocks of this kind never go back.
        """
        if not (is_number(seconds) and 0 <= seconds < math.inf):
            raise ValueError(f"seconds must be a finite number >= 0, got {seconds!r}.")
        self.now += seconds
