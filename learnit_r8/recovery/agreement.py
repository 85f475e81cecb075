"""Agreement: what the ranks of a run decide together; a run alone decides by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Ranks(Protocol):
    """The processes that train one model together.

    Attributes:
        rank: Number of this process among them.
    """

    rank: int

    def agree(self, trouble: str) -> str:
        """Share this rank's failure with all ranks: returns that of any rank; "" if there is none."""

    def is_same(self, text: str) -> bool:
        """Whether all ranks call it with the same text."""

    def most(self, number: int) -> int:
        """The largest of the numbers that the ranks call it with."""

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of all ranks, in their order; every rank calls it with as many."""

    def meet(
        self, wished: int, span: tuple[float, float], agree: Callable[[list[int], Sequence[Sequence[float]]], None]
    ) -> None:
        """Wait a little while the run is paused, and pass the wishes of all ranks to ``agree``; see `Requests`."""


class Agreement:
    """Answers at once as long as the run is alone, and asks the other ranks once it has joined them.

    Attributes:
        ranks: The ranks; None for a run alone.
    """

    def __init__(self) -> None:
        self.ranks: Ranks | None = None

    def join(self, ranks: Ranks) -> None:
        """Decide together with other ranks from now on."""
        self.ranks = ranks

    def agree(self, trouble: str) -> str:
        """Share this rank's failure: returns that of any rank; "" if there is none."""
        return trouble if self.ranks is None else self.ranks.agree(trouble)

    def most(self, number: int) -> int:
        """The largest of the numbers of all ranks."""
        return number if self.ranks is None else self.ranks.most(number)

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of all ranks, in their order."""
        return [list(numbers)] if self.ranks is None else self.ranks.gather(numbers)

    def is_same(self, text: str) -> bool:
        """Whether all ranks call it with the same text."""
        return self.ranks is None or self.ranks.is_same(text)
