"""The triggers themselves: frozen questions about `Elapsed`, combined with ``&``, ``|`` and ``~``."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


Condition = Callable[[Elapsed], Any]
"""Says of a point of the run whether to act: a trigger, or any function of `Elapsed` whose result has a truth."""


class Trigger(abc.ABC):
    """A question about how far a run is, without memory and without a clock.

    ``a & b``, ``a | b`` and ``~a`` are triggers too, with plain functions as well; both sides are always asked. Two
    triggers are never equal, so that each may be a key of its own in one dictionary of tasks.
    """

    @abc.abstractmethod
    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether to act at this point."""

    def __and__(self, other: Condition) -> Trigger:
        return Both(self, other) if callable(other) else NotImplemented

    __rand__ = __and__

    def __or__(self, other: Condition) -> Trigger:
        return Either(self, other) if callable(other) else NotImplemented

    __ror__ = __or__

    def __invert__(self) -> Trigger:
        return Not(self)

    def __bool__(self) -> bool:
        # ``every(10) and f`` would silently be ``f``.
        raise TypeError(f"a trigger must be combined with & | ~ and called with an Elapsed, got the truth of {self!r}.")


@dataclass(frozen=True, eq=False)
class Both(Trigger):
    """``left & right``.

    Attributes:
        left: A condition.
        right: A condition, asked whatever the left one says.
    """

    left: Condition
    right: Condition

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether both say yes."""
        left, right = self.left(elapsed), self.right(elapsed)
        return bool(left) and bool(right)


@dataclass(frozen=True, eq=False)
class Either(Trigger):
    """``left | right``.

    Attributes:
        left: A condition.
        right: A condition, asked whatever the left one says.
    """

    left: Condition
    right: Condition

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether one says yes."""
        left, right = self.left(elapsed), self.right(elapsed)
        return bool(left) or bool(right)


@dataclass(frozen=True, eq=False)
class Not(Trigger):
    """``~inner``.

    Attributes:
        inner: A condition.
    """

    inner: Condition

    def __call__(self, elapsed: Elapsed) -> bool:
        """Whether it says no."""
        return not self.inner(elapsed)


@dataclass(frozen=True, eq=False)
class Constant(Trigger):
    """The same answer at every question.

    Attributes:
        answer: The answer.
    """

    answer: bool

    def __call__(self, elapsed: Elapsed) -> bool:
        """The answer."""
        return self.answer


always = Constant(True)
"""Fires at every question."""

never = Constant(False)
"""Never fires."""
