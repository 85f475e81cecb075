"""Events of the run as a whole: start, pause, end, notices."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .event import ALERT, GOOD, INFO, WARN, Event, Words
from .text import file_name, number

NO_TABLE = "no table: it is not known which samples these batches hold"
"""What views say in place of samples if the batches are the user's own."""


@dataclass(frozen=True)
class RunStarted(Event):
    """The first batch of this process is about to be drawn.

    Attributes:
        name: Name of the run, "" if it has none.
        num_samples: N; for the user's own batches, the samples known so far, 0 if there is no table.
        batch_size: B; 0 if it is not known.
        steps_per_epoch: Steps in an epoch; 0 if the user's loader decides.
        total_steps: Steps in the run; None with a time budget, and as long as the end is not known.
        train_duration_seconds: The time budget; None without one.
        policy: Name of the policy.
        settings: Configuration of the run and versions, name -> value as text.
        lr_plan: Learning rates of the schedule at equal distances of progress, from 0 to 1; empty if unknown.
        grows: Whether the table grows with the samples that the user's own batches hold.

    A resumed run has the step and the seconds it goes on from.
    """

    name: str
    num_samples: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int | None
    train_duration_seconds: float | None
    policy: str
    settings: dict[str, str] = field(default_factory=dict)
    lr_plan: tuple[float, ...] = ()
    grows: bool = False

    @property
    def data(self) -> str:
        """The samples and batches; or that there is no table of them."""
        if self.grows:
            known = f"{self.num_samples:,} samples" if self.num_samples else "samples counted as they come,"
            return f"{known} in your own batches"
        if not self.num_samples:
            return NO_TABLE
        return f"{self.num_samples:,} samples in batches of {self.batch_size:,}"

    def words(self) -> Words:
        """See `Event`."""
        where = f"resumed at step {self.step:,}" if self.step else "started"
        return Words(INFO, f"{where}: {self.data}", "R" * bool(self.step))


@dataclass(frozen=True)
class RunPaused(Event):
    """The run waits between two steps; its time does not count.

    Attributes:
        reason: The reason; "" if none was given.
    """

    reason: str

    def words(self) -> Words:
        """See `Event`."""
        return Words(INFO, f"paused: {self.reason}" if self.reason else "paused")


@dataclass(frozen=True)
class RunResumed(Event):
    """A paused run goes on."""

    def words(self) -> Words:
        """See `Event`."""
        return Words(INFO, "goes on")


@dataclass(frozen=True)
class RunStopped(Event):
    """The run was asked to end before its budget is used up; a checkpoint is saved if there is a folder.

    Attributes:
        reason: The reason; "" if none was given.
        is_early: Whether the program itself ended it because it had done enough: a success.
    """

    reason: str
    is_early: bool = False

    def words(self) -> Words:
        """See `Event`."""
        said = "ends early" if self.is_early else "asked to stop"
        return Words(GOOD if self.is_early else WARN, f"{said}: {self.reason}" if self.reason else said)


@dataclass(frozen=True)
class CoolDownBegan(Event):
    """A cool-down was asked for and starts: the rate falls from here on, then the run ends.

    Attributes:
        total_steps: Steps in the run; None where its end is a time.
        train_duration_seconds: Training seconds in the run; None where its end is a step.
        until: Wall time of the end, seconds since 1970; None where steps or training seconds count.
        lr: Rate at which it starts, before the factor of recovery.
        reason: Who asked for it; "" for the program itself.
    """

    total_steps: int | None
    train_duration_seconds: float | None
    until: float | None
    lr: float
    reason: str

    def words(self) -> Words:
        """See `Event`."""
        if self.until is not None:
            try:
                end = f"at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.until))}"
            except (OverflowError, ValueError, OSError):
                # A damaged file of events may hold any number.
                end = f"at {number(self.until)} s after 1970"
        elif self.total_steps is not None:
            end = f"at step {self.total_steps:,}"
        else:
            end = f"after {self.train_duration_seconds or 0.0:,.0f} s"
        because = f" ({self.reason})" if self.reason else ""
        return Words(INFO, f"cooling down from a rate of {number(self.lr)}, to the end {end}{because}", "D")


@dataclass(frozen=True)
class RunEnded(Event):
    """The run was closed.

    Attributes:
        finished: Whether the budget was used up, the program itself ended the run, or a loop of the user's own that has
            no budget came to its end.
        early: Why it ended the run before its budget was used up, "" if it gave no reason; None if it did not.
    """

    finished: bool
    early: str | None = None

    @property
    def how(self) -> str:
        """How the run has ended, in one or two words."""
        if not self.finished:
            return "stopped"
        return "finished" if self.early is None else "finished early"

    def words(self) -> Words:
        """See `Event`."""
        return Words(GOOD, self.how) if self.finished else Words(WARN, "stopped before its end")


@dataclass(frozen=True)
class Notice(Event):
    """A message for the user, sent once.

    Attributes:
        text: One sentence.
        is_warning: Whether it was a Python warning, too.
    """

    text: str
    is_warning: bool

    def words(self) -> Words:
        """See `Event`."""
        return Words(WARN if self.is_warning else INFO, self.text)


@dataclass(frozen=True)
class Alive(Event):
    """A sign of life, every ten seconds; only in a journal. ``step`` and ``seconds`` are the last known."""


@dataclass(frozen=True)
class ProcessLeft(Event):
    """The process ended in an orderly way, or an exception ended the run; only in a journal.

    Attributes:
        error: The last line of the traceback that ended the run; "" without an exception.
    """

    error: str

    def words(self) -> Words:
        """See `Event`."""
        return Words(ALERT, f"died: {self.error}") if self.error else Words(INFO, "the process left")


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

    def words(self) -> Words:
        """See `Event`."""
        if self.is_on:
            return Words(GOOD, "backups outlive the process again")
        return Words(WARN, f"backups do not outlive the process: {self.reason}")


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

    def words(self) -> Words:
        """See `Event`."""
        return Words(INFO, f"checkpoint {file_name(self.path)} saved{self.mark}", "C")


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

    def words(self) -> Words:
        """See `Event`."""
        name = file_name(self.path)
        source = f"checkpoint {name}"
        if name.startswith("gen_"):
            source = f"the backup in shared memory {self.path}, which is newer than every checkpoint on disk,"
        return Words(INFO, f"goes on from {source} at step {self.step:,}")
