"""The triggers themselves: frozen questions about `Elapsed`, combined with ``&``, ``|`` and ``~``."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .elapsed import Elapsed

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

    def __rand__(self, other: Condition) -> Trigger:
        return Both(other, self) if callable(other) else NotImplemented

    def __or__(self, other: Condition) -> Trigger:
        return Either(self, other) if callable(other) else NotImplemented

    def __ror__(self, other: Condition) -> Trigger:
        return Either(other, self) if callable(other) else NotImplemented

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
