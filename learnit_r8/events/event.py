"""The base of all events, and their listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """An event of a run.

    Attributes:
        step: Batches reported so far, refused ones included.
        seconds: Training time so far, pauses and downtime excluded.
    """

    step: int
    seconds: float


Listener = Callable[[Event], None]
"""Hears every event, in order, on the training thread."""
