"""Every sample once per pass, in random order."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Policy


@dataclass(frozen=True)
class Shuffle(Policy):
    """Every sample once per pass in random order, as by a plain shuffle: the baseline."""

    name = "shuffle"
    uses_groups = False
    is_random = False
