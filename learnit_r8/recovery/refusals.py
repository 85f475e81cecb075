"""The counts of refused batches: how many in a row, how many of the last hundred, and how many are worth a look."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

LEAST_BAD, MOST_BAD = 2, 32
"""Losses in a row that are not finite and are looked into; doubled within these bounds whenever the weights prove
healthy."""

BROKEN = 50
"""Batches of the last hundred that must be refused for the data to be called broken."""


class Refusals:
    """Counts refused batches.

    Attributes:
        in_a_row: Batches in a row that were not trained on, probes included.
        in_vain: The same, but a good batch ends the count only if the weights get further; see `Lineage.gains`.
        bad_in_a_row: Losses in a row that were not finite, probes aside.
        bad_limit: How many of them are worth an experiment.
    """

    def __init__(self) -> None:
        self.in_a_row = self.bad_in_a_row = self.in_vain = 0
        self.bad_limit = LEAST_BAD
        self._outcomes: deque[bool] = deque(maxlen=100)

    @property
    def is_none(self) -> bool:
        """Whether none of the last hundred batches was refused."""
        return not self._outcomes

    @property
    def is_broken(self) -> bool:
        """Whether so many were refused that the data must be broken."""
        return sum(self._outcomes) > BROKEN

    @property
    def is_worth_looking(self) -> bool:
        """Whether so many losses in a row were not finite that the weights may be the cause."""
        return self.bad_in_a_row >= self.bad_limit

    def share_of(self, updates: int) -> float:
        """Share of the last hundred batches that were refused, in (0, 1), as far as so few can tell.

        Args:
            updates: Batches trained on so far; good ones before the first refusal are not counted one by one.
        """
        return (sum(self._outcomes) + 1) / (max(len(self._outcomes), min(100, updates)) + 4)

    def refused(self, *, is_finite: bool) -> None:
        """Note a refused batch."""
        self._outcomes.append(True)
        self.in_a_row += 1
        self.in_vain += 1
        self.bad_in_a_row += not is_finite

    def probed(self) -> None:
        """Note a probe."""
        self.in_a_row += 1
        self.in_vain += 1

    def good(self, *, gains: bool = True) -> None:
        """Note a batch that was learned from, while any of the last hundred was refused.

        Args:
            gains: Whether the weights get further.
        """
        if gains:
            self.in_vain = 0
        self._outcomes.append(False)
        if not any(self._outcomes):
            self._outcomes.clear()
        self.in_a_row = self.bad_in_a_row = 0
        self.bad_limit = max(LEAST_BAD, self.bad_limit - 1)

    def state_dict(self) -> dict[str, Any]:
        """The counts, as plain values."""
        return {
            "in_a_row": self.in_a_row, "bad_in_a_row": self.bad_in_a_row, "bad_limit": self.bad_limit,
            "outcomes": list(self._outcomes), "in_vain": self.in_vain,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.in_a_row, self.bad_in_a_row, self.bad_limit = state["in_a_row"], state["bad_in_a_row"], state["bad_limit"]
        self._outcomes = deque(state["outcomes"], maxlen=100)
        self.in_vain = state.get("in_vain", self.in_a_row)

    def weights_are_healthy(self) -> None:
        """Wait for twice as many in a row before the next look."""
        self.bad_limit = min(MOST_BAD, 2 * self.bad_limit)
