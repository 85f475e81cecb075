"""The interface of what holds reports back until the table learns from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class ReportHolder(Protocol):
    """Holds back reports that the table has not learned from yet."""

    def hand_over(self) -> None:
        """Let the table learn from all of them, as it is about to be read."""

    def before_offsets(self, trend: float) -> Callable[[bool], None]:
        """Prepare for a switch of the estimates to differences from the trend.

        Args:
            trend: The current trend.

        Returns:
            A function that stores the holder's own predictions as such differences (True) or as before (False).
        """
