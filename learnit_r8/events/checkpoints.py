"""Events of backups and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from .event import Event


@dataclass(frozen=True)
class BackupTaken(Event):
    """A model state was copied to RAM."""


@dataclass(frozen=True)
class BackupsOutlive(Event):
    """Backups are kept only in the memory of the process from now on, or also outside it, so that they outlive it.

    Attributes:
        is_on: Whether they outlive it.
        reason: Why not; "" if they do.
    """

    is_on: bool
    reason: str


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint is on disk, flushed.

    Attributes:
        path: The scheduler's file.
        model_path: The model's file; None without one.
        is_on_trial: Whether that holds weights that were only tried or tested then.
    """

    path: str
    model_path: str | None
    is_on_trial: bool = False

    @property
    def mark(self) -> str:
        """What views add for weights on trial."""
        return ", with weights on trial" if self.is_on_trial else ""


@dataclass(frozen=True)
class BestSaved(Event):
    """A checkpoint is the best so far, and retention keeps it.

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
        skipped: A text for each newer file that was skipped, with the reason.
        differences: A text for each difference to the configuration of the saved run.
    """

    path: str
    model_path: str | None
    skipped: tuple[str, ...]
    differences: tuple[str, ...]
