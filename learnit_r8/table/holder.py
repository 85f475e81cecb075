"""The interface of what holds reports back until the table learns from them."""

from __future__ import annotations

from typing import Protocol


class ReportHolder(Protocol):
    """Holds back reports that the table has not learned from yet."""

    def hand_over(self) -> None:
        """Let the table learn from all of them, as it is about to be read."""

    def use_offsets(self, trend: float) -> None:
        """Turn the holder's own predictions into differences from the trend, as the estimates are about to be.

        Args:
            trend: The current trend.
        """
