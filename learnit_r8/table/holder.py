"""What stands between a report and the table that learns from it later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class ReportHolder(Protocol):
    """What holds reports back that the table has not learned from yet."""

    def hand_over(self) -> None:
        """Let the table learn from all of them: somebody reads it."""

    def before_offsets(self, trend: float) -> Callable[[bool], None]:
        """Prepare for estimates that become differences to the trend.

        Args:
            trend: The trend now.

        Returns:
            What stores the holder's own predictions as such differences (True), or as they were before (False).
        """
