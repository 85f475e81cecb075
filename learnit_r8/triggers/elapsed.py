"""How far a run is: the one thing a trigger is asked about, and a counter that makes it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from .._validation import whole_number


class Elapsed(NamedTuple):
    """What is finished now, and what was finished at the question before.

    It carries both, so that triggers need no memory: two runs, or two askers, cannot disturb each other.

    Attributes:
        steps: Steps finished.
        samples: Samples trained on.
        time: Seconds since the start.
        last_steps: Steps at the question before; 0 at the first one.
        last_samples: Samples at the question before.
        last_time: Seconds at the question before.
    """

    steps: int = 0
    samples: int = 0
    time: float = 0.0
    last_steps: int = 0
    last_samples: int = 0
    last_time: float = 0.0


class ElapsedCounter:
    """Counts for a loop of your own: one `count` a step, one clock reading a `count`.

    Time is that of ``time.monotonic``, and starts when the counter is made.

    >>> counter = ElapsedCounter()
    >>> [counter.count(samples=32).samples for _ in range(3)]
    [32, 64, 96]
    """

    def __init__(self) -> None:
        self._done = (0, 0, 0.0)
        self._origin = time.monotonic()

    def count(self, steps: int = 1, samples: int = 0) -> Elapsed:
        """Note that this many more are finished.

        Args:
            steps: Steps since the call before, >= 0.
            samples: Samples since the call before, >= 0.

        Returns:
            Where the run is now, for triggers.

        Raises:
            ValueError: one of them is not whole or below 0.
        """
        steps, samples = whole_number("steps", steps, least=0), whole_number("samples", samples, least=0)
        last = self._done
        now = self._done = (last[0] + steps, last[1] + samples, time.monotonic() - self._origin)
        return Elapsed(*now, *last)

    def __getstate__(self) -> dict[str, Any]:
        # The clock of another process begins elsewhere.
        return {**self.state_dict(), "time": time.monotonic() - self._origin}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on counting."""
        return {"steps": self._done[0], "samples": self._done[1], "time": self._done[2]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the time in between does not count."""
        self._done = (state["steps"], state["samples"], state["time"])
        self._origin = time.monotonic() - state["time"]
