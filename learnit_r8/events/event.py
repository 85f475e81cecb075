"""What every event has, and who hears them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        step: Batches reported so far, refused ones included.
        seconds: Training time so far, pauses and downtime excluded.
    """

    step: int
    seconds: float


Listener = Callable[[Event], None]
"""Hears every event, in order, on the training thread."""
