"""The recovery ladder: the order in which older states are tried within an incident."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MOST_RESTORES = 256
"""Restores that a `WeightAge` remembers."""


class WeightAge:
    """Counts the training steps that are in the weights, which is fewer than were reported once a state was restored.

    Damage that always shows a fixed number of steps after its cause shows at the same age of the weights, however often
    they are restored.
    """

    def __init__(self) -> None:
        self._lost: list[tuple[int, int]] = []

    def age(self, step: int) -> int:
        """Training steps in the weights that were in use when ``step`` steps were reported."""
        return step - next((lost for at, lost in reversed(self._lost) if at < step), 0)

    def went_back(self, *, now: int, to: int) -> None:
        """Note that the weights of step ``to`` were restored at step ``now``."""
        self._lost = [*self._lost, (now, now - self.age(to))][-MOST_RESTORES:]

    def state_dict(self) -> list[list[int]]:
        """For each restore, the steps reported by then and how many of those are not in the weights any more."""
        return [list(entry) for entry in self._lost]

    def load_state_dict(self, state: Sequence[Sequence[int]]) -> None:
        """Load what `state_dict` returned."""
        self._lost = [(int(at), int(lost)) for at, lost in state]


class RollbackDepth(NamedTuple):
    """How far an incident has gone back.

    Attributes:
        first: Steps reported at its first refusal.
        last: Steps reported when the last restored state was taken.
        repeats: Whether to try that state once more.
        least: States taken at fewer steps than this are not tried.
    """

    first: int
    last: int
    repeats: bool = False
    least: int = 0


def rollback_order(steps: Sequence[int], depth: RollbackDepth) -> list[int]:
    """The indices of the states to try in turn, the best one first.

    Every further try goes strictly back and at least doubles the distance to the start of the incident, so a few tries
    get past a cause of any age. If no state is that old, the oldest comes first. States newer than the last restored
    one are tried only if there is no other.

    Args:
        steps: Steps reported when each state was taken, newest first.
        depth: How far the incident has gone back.

    >>> steps = [190, 150, 120, 60, 0]
    >>> rollback_order(steps, RollbackDepth(first=200, last=190))
    [1, 2, 3, 4, 0]
    >>> rollback_order(steps, RollbackDepth(first=200, last=150))
    [3, 4, 2, 1]
    >>> rollback_order(steps, RollbackDepth(first=200, last=150, repeats=True, least=50))
    [1, 3, 2]
    """
    first, last, repeats, least = depth
    bound = last - max(0, first - last)
    same = [place for place, step in enumerate(steps) if step == last]
    far = [place for place, step in enumerate(steps) if least <= step < last and step <= bound]
    near = [place for place, step in enumerate(steps) if max(bound + 1, least) <= step < last]
    older = far + near[::-1]
    return (same + older if repeats else older + same) or list(range(len(steps)))
