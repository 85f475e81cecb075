"""States of the run were put away, or taken up again."""

from __future__ import annotations

from dataclasses import dataclass

from .event import Event


@dataclass(frozen=True)
class BackupTaken(Event):
    """A model state was copied to RAM."""


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint is safely on disk.

    Attributes:
        path: The scheduler's file.
        model_path: The model's file; None without one.
    """

    path: str
    model_path: str | None


@dataclass(frozen=True)
class BestSaved(Event):
    """A checkpoint is the best so far, and is kept.

    Attributes:
        path: The scheduler's file.
        monitor: Name of the metric.
        value: Its value.
    """

    path: str
    monitor: str
    value: float


@dataclass(frozen=True)
class CheckpointLoaded(Event):
    """The run goes on from a checkpoint.

    Attributes:
        path: The scheduler's file.
        model_path: The model's file; None without one.
        skipped: Why newer files were passed over, one text each.
        differences: What is configured otherwise than in the saved run, one text each.
    """

    path: str
    model_path: str | None
    skipped: tuple[str, ...]
    differences: tuple[str, ...]
