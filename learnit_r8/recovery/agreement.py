"""Agreement: what the ranks of a run decide together; a run alone decides by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

LOOK_SECONDS = 0.1
"""Seconds after which paused ranks ask each other again whether to go on."""


class Channel(Protocol):
    """Carries messages between the processes of a training; all of them make each call, in the same order.

    Attributes:
        rank: Number of this process, 0-based.
        size: Number of processes.
    """

    rank: int
    size: int

    def gather(self, message: NDArray[Any]) -> NDArray[Any]:
        """T[size, L], the messages of all processes, T[L] of each, in the order of the ranks."""

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all processes, which may be anything that a checkpoint can hold."""

    def of_first(self, value: Any) -> Any:
        """The value of rank 0, as `gather_values` takes it."""
        return self.gather_values(value if self.rank == 0 else None)[0]


class Agreement:
    """Answers at once as long as the run is alone, and asks the other ranks once it has joined them.

    Attributes:
        ranks: The ranks; None for a run alone.
    """

    def __init__(self) -> None:
        self.ranks: Channel | None = None
        self._clock: Any = None
        self._is_stopped: Callable[[], bool] = lambda: False

    def join(self, ranks: Channel, clock: Any, is_stopped: Callable[[], bool]) -> None:
        """Decide together with other ranks from now on.

        Args:
            ranks: The ranks.
            clock: Their clock, see `RankGroup.shared_clock`.
            is_stopped: Whether the run was stopped; it must not refer to the run.
        """
        self.ranks, self._clock, self._is_stopped = ranks, clock, is_stopped

    def agree(self, trouble: str) -> str:
        """A text that says what failed on this rank, or on which ranks something failed; "" if nothing did."""
        if self.ranks is None or self._is_stopped():
            # A rank that was told to end by a signal is gone by now.
            return trouble
        elsewhere = ", ".join(str(rank) for rank, (failed,) in enumerate(self.gather([bool(trouble)])) if failed)
        return trouble or (elsewhere and f"it went wrong on rank {elsewhere}")

    def copied(self, what: str, copy: Callable[[], T]) -> T:
        """The copy that is made of something where all ranks have the memory for it.

        Raises:
            MemoryError: there is none on some rank.
        """
        made, shortage = None, ""
        try:
            made = copy()
        except MemoryError as error:
            shortage = str(error) or f"there is no memory for a copy of {what}"
        shortage = self.agree(shortage)
        if made is None or shortage:
            raise MemoryError(shortage)
        return made

    def most(self, number: int) -> int:
        """The largest of the numbers of all ranks; this rank's own in a run that was stopped, as in `agree`."""
        if self.ranks is None or self._is_stopped():
            return number
        return max(each for (each,) in self.gather([number]))

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of all ranks, in their order; every rank calls it with as many."""
        if self.ranks is None:
            return [list(numbers)]
        everyone: list[list[int]] = self.ranks.gather(np.array(numbers, np.int64)).tolist()
        return everyone

    def is_same(self, text: str) -> bool:
        """Whether all ranks call it with the same text."""
        return self.ranks is None or len(set(self.ranks.gather_values(text))) == 1

    def meet(
        self, wished: int, span: tuple[float, float], agree: Callable[[list[int], Sequence[Sequence[float]]], None]
    ) -> None:
        """Wait a little while the run is paused, and pass the wishes of all ranks to ``agree``; see `Requests`."""
        assert self.ranks is not None
        time.sleep(LOOK_SECONDS)
        messages = self.ranks.gather(np.array([float(wished), self._clock.own(), *span]))
        self._clock.now = float(messages[0, 1])
        agree([int(wish) for wish in messages[:, 0]], messages[:, 2:].tolist())
