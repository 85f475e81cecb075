"""Everything once a pass, in random order."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Policy


@dataclass(frozen=True)
class Shuffle(Policy):
    """Every sample once a pass in random order: what a plain shuffle does. The baseline."""

    name = "shuffle"
    uses_groups = False
    is_random = False
