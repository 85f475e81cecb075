"""Channel: how the processes of a training exchange a few numbers; an adapter has one for its framework."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class RanksDiffer(RuntimeError):
    """The processes of a training differ in their arguments or steps, so that their tables cannot be equal."""


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

    def of_first(self, text: str | None) -> str | None:
        """The text of rank 0."""
