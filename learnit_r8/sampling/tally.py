"""The tally of an epoch: the counts from which its summary is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Tally:
    """Counts since the epoch's first draw.

    Attributes:
        began: Training seconds at its first draw; NaN before it.
        num_good: Good losses.
        total: Their sum.
        samples: Samples trained on.
    """

    began: float = math.nan
    num_good: int = 0
    total: float = 0.0
    samples: int = 0

    @property
    def loss(self) -> float:
        """Mean good loss; NaN if there was none."""
        return self.total / self.num_good if self.num_good else math.nan

    @property
    def has_begun(self) -> bool:
        """Whether the epoch's first batch was drawn."""
        return self.began == self.began

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tally:
        """Make a tally from what `state_dict` returned."""
        return cls(**state)
