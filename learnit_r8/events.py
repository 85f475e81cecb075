"""Events: the only thing that leaves the scheduler. Frozen records; `wire` has their form as strict JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        step: Batches reported so far, refused ones included.
        seconds: Training time so far, pauses and downtime excluded.
    """

    step: int
    seconds: float


@dataclass(frozen=True)
class RunStarted(Event):
    """The first batch of this process is about to be drawn.

    Attributes:
        name: Name of the run, "" if it has none.
        num_samples: N.
        batch_size: B.
        steps_per_epoch: Steps in an epoch.
        total_steps: Steps in the run; None with a time budget.
        train_duration_seconds: The time budget; None without one.
        policy: Name of the policy.
        settings: Configuration of the run and versions, name -> value as text.
        lr_plan: Learning rates of the schedule at equal distances of progress, from 0 to 1; empty if unknown.

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


@dataclass(frozen=True)
class StepDone(Event):
    """A batch was reported and learned from.

    Attributes:
        epoch: Its epoch, 0-based.
        progress: Finished share of the budget, in [0, 1].
        loss: Mean loss of the batch.
        expected_loss: What the table predicted for it; NaN before it knew.
        lr: Learning rate the batch was drawn with.
        batch_size: Samples in it.
        steady: Whether it was drawn to steady the training.
        own_seconds: Time spent inside the scheduler since the step before, listeners included.
        data_seconds: Time spent waiting for data since the step before, where somebody measures it.
        suspicion: How near the guard is to refusing, from 0 (calm) to 1.
    """

    epoch: int
    progress: float
    loss: float
    expected_loss: float
    lr: float
    batch_size: int
    steady: bool
    own_seconds: float = 0.0
    data_seconds: float = 0.0
    suspicion: float = 0.0


@dataclass(frozen=True)
class StepsDone(Event):
    """Batches learned from one after the other, summed up: what a journal holds in place of their `StepDone`.

    ``step`` and ``seconds`` are those of the last of them.

    Attributes:
        num_steps: How many, >= 1.
        epoch: Epoch of the last, 0-based.
        progress: Finished share of the budget after the last, in [0, 1].
        loss: Mean of their mean losses.
        lowest, highest: Smallest and largest of those.
        last_loss: Mean loss of the last.
        expected_loss: Mean of what the table predicted for them; NaN before it knew.
        lr: Learning rate of the last.
        samples: Samples in them.
        num_steady: How many were drawn to steady the training.
        own_seconds: Time spent inside the scheduler for them, listeners included.
        data_seconds: Time spent waiting for their data, where somebody measures it.
        suspicion: The highest of theirs.
    """

    num_steps: int
    epoch: int
    progress: float
    loss: float
    lowest: float
    highest: float
    last_loss: float
    expected_loss: float
    lr: float
    samples: int
    num_steady: int
    own_seconds: float = 0.0
    data_seconds: float = 0.0
    suspicion: float = 0.0


@dataclass(frozen=True)
class SamplesSurveyed(Event):
    """What the table knows of the samples, told at the end of an epoch and every few seconds.

    Only made where a listener has a true attribute ``wants_surveys``. Rows of quartiles are Q1 (lowest loss) to Q4.

    Attributes:
        epoch: The current epoch, 0-based.
        epoch_ended: Whether an epoch has just ended.
        source: Where the losses of samples come from: "exact", "parts of 4", "batch means of 32".
        trust: How far to trust them: "exact", "fair" or "rough".
        num_read: Samples this was computed from; fewer than N where a scan would cost too much.
        num_seen: Of them, those seen at least once.
        low: Lowest loss of each quartile; empty while fewer than four samples were seen, as are all rows.
        high: Highest loss of each.
        mean: Mean loss of each.
        share: Share of the seen samples in each.
        uses: Mean number of times its samples were learned from.
        batch_share: Share of the last batch in each; empty if unknown.
        flow: 16 numbers, row by row: share of the samples that were in quartile i and are in quartile j now, of
            all seen both times, since the end of the epoch before the last; empty before.
        loss_range: Lowest and highest loss of the histogram.
        loss_is_log: Whether its bins are of equal ratio, not of equal width.
        loss_counts: Samples in its bins; the first holds those below and the last those above, too.
        uses_range: Lowest and highest use.
        uses_counts: Samples in bins of equal width between them.
        hardest: Positions of the samples with the highest loss, highest first; at most 50.
        hardest_names: What the user calls them.
        hardest_loss: Their loss.
        hardest_last: Their last observation.
        hardest_uses: How often each was learned from.
        hardest_history: Their losses at the ends of the last epochs, oldest first; NaN where unknown.
        hardest_suspected: Whether each is a suspect, listed or not.
        suspects: Positions of samples that look mislabelled, most suspect first; at most 50.
        suspect_names: What the user calls them.
        suspect_loss: Their mean loss over the run.
        suspect_uses: How often each was learned from.
        suspect_history: Like that of the hardest.
        suspect_score: How surely each is not one of the learnt samples, in [0, 1].
        suspect_why: "always high", "rising" or "memorised".
        num_suspects: How many there are.
        noise_rate: Their share, an estimate of the share of wrong labels; NaN if none can be told.
        no_suspects: Why there are none; "" if there are some.
        survey_seconds: What making this took.
    """

    epoch: int
    epoch_ended: bool
    source: str
    trust: str
    num_read: int
    num_seen: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    share: tuple[float, ...]
    uses: tuple[float, ...]
    batch_share: tuple[float, ...]
    flow: tuple[float, ...]
    loss_range: tuple[float, ...]
    loss_is_log: bool
    loss_counts: tuple[int, ...]
    uses_range: tuple[int, ...]
    uses_counts: tuple[int, ...]
    hardest: tuple[int, ...]
    hardest_names: tuple[str, ...]
    hardest_loss: tuple[float, ...]
    hardest_last: tuple[float, ...]
    hardest_uses: tuple[int, ...]
    hardest_history: tuple[tuple[float, ...], ...]
    hardest_suspected: tuple[bool, ...]
    suspects: tuple[int, ...]
    suspect_names: tuple[str, ...]
    suspect_loss: tuple[float, ...]
    suspect_uses: tuple[int, ...]
    suspect_history: tuple[tuple[float, ...], ...]
    suspect_score: tuple[float, ...]
    suspect_why: tuple[str, ...]
    num_suspects: int
    noise_rate: float
    no_suspects: str
    survey_seconds: float


@dataclass(frozen=True)
class BatchRefused(Event):
    """A loss was not learned from.

    Attributes:
        epoch: The epoch of the batch, 0-based.
        loss: The refused mean loss; NaN, infinite or beyond float32.
        lr: Learning rate the batch was drawn with.
        next_lr: Learning rate from now on.
        tries: Refusals in this incident.
        samples: Positions of the samples whose own loss was not finite; empty where only a mean was reported, and
            where it was all of them.
        reason: The guard's verdict.
    """

    epoch: int
    loss: float
    lr: float
    next_lr: float
    tries: int
    samples: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class RolledBack(Event):
    """The model was restored.

    Attributes:
        to_step: Steps reported when the restored state was taken.
        source: "backup" or the name of the checkpoint.
    """

    to_step: int
    source: str


@dataclass(frozen=True)
class RestoreFailed(Event):
    """A state could not be put back; the next one is tried.

    Attributes:
        to_step: Steps reported when it was taken.
        source: "backup" or the name of the checkpoint.
        reason: What went wrong.
    """

    to_step: int
    source: str
    reason: str


@dataclass(frozen=True)
class DamageFound(Event):
    """A number in the model's state was not finite when a backup was due; losses may have been fine.

    Attributes:
        array: Dotted key of the array.
    """

    array: str


@dataclass(frozen=True)
class LrCapped(Event):
    """The learning rate stays below a ceiling from now on; `LrRestored` is its end.

    Attributes:
        ceiling: The highest rate allowed; it rises again slowly.
        reason: The guard's verdict.
    """

    ceiling: float
    reason: str


@dataclass(frozen=True)
class GaveUp(Event):
    """Everything was tried, and the run ends with TrainingDiverged.

    Attributes:
        text: Its message.
        bundle: Path of the file with the diagnosis; None without a folder.
    """

    text: str
    bundle: str | None


@dataclass(frozen=True)
class IncidentEnded(Event):
    """Enough good losses have followed a refused one."""


@dataclass(frozen=True)
class LrRestored(Event):
    """The learning rate is back on its schedule."""


@dataclass(frozen=True)
class BatchAbandoned(Event):
    """A drawn batch was not reported.

    Attributes:
        epoch: Its epoch, 0-based.
        drawn_again: Whether it comes again at the end of the epoch; else it counts as a refused step.
    """

    epoch: int
    drawn_again: bool


@dataclass(frozen=True)
class EpochDone(Event):
    """All steps of an epoch were reported.

    Attributes:
        epoch: The epoch, 0-based.
        progress: Finished share of the budget, in [0, 1].
        loss: Mean over its good batch losses; NaN if there was none.
        lr: Learning rate of its last batch.
        samples: Samples trained on in it.
        epoch_seconds: Training time between its first draw and its last report.
    """

    epoch: int
    progress: float
    loss: float
    lr: float
    samples: int
    epoch_seconds: float


@dataclass(frozen=True)
class MetricsLogged(Event):
    """The user logged values, of a validation for instance.

    Attributes:
        at_step: The step they belong to.
        metrics: Name and value.
    """

    at_step: int
    metrics: dict[str, float]


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


@dataclass(frozen=True)
class RunPaused(Event):
    """The run waits between two steps; its time does not count.

    Attributes:
        reason: Why, "" if nobody said.
    """

    reason: str


@dataclass(frozen=True)
class RunResumed(Event):
    """A run that waited goes on."""


@dataclass(frozen=True)
class RunStopped(Event):
    """The run was asked to end before its budget is used up; a checkpoint is saved if there is a folder.

    Attributes:
        reason: Why, "" if nobody said.
    """

    reason: str


@dataclass(frozen=True)
class LrFound(Event):
    """The search for a learning rate ended.

    Attributes:
        lr: The rate found.
        num_steps: Steps it took, outside the budget.
    """

    lr: float
    num_steps: int


@dataclass(frozen=True)
class LrPlanned(Event):
    """The schedule is another one from now on.

    Attributes:
        lr_plan: Its learning rates, as in `RunStarted`.
    """

    lr_plan: tuple[float, ...]


@dataclass(frozen=True)
class Notice(Event):
    """Something the user should know once.

    Attributes:
        text: One sentence.
        is_warning: Whether it went out as a Python warning too.
    """

    text: str
    is_warning: bool


@dataclass(frozen=True)
class RunEnded(Event):
    """The run was closed.

    Attributes:
        finished: Whether the budget was used up.
    """

    finished: bool


@dataclass(frozen=True)
class Alive(Event):
    """The process is still there; only in a journal, every ten seconds. ``step`` and ``seconds`` are the last known."""


@dataclass(frozen=True)
class ProcessLeft(Event):
    """The process ended in good order, or the run did with an exception; only in a journal.

    Attributes:
        error: The exception that ended it, as Python's last line on it; "" without one.
    """

    error: str


EVENTS = {
    kind.__name__: kind
    for kind in (
        RunStarted, StepDone, StepsDone, SamplesSurveyed, BatchRefused, RolledBack, RestoreFailed, DamageFound,
        LrCapped, GaveUp, IncidentEnded, LrRestored, BatchAbandoned, EpochDone, MetricsLogged, BackupTaken,
        CheckpointSaved, BestSaved, CheckpointLoaded, RunPaused, RunResumed, RunStopped, LrFound, LrPlanned, Notice,
        RunEnded, Alive, ProcessLeft,
    )
}  # fmt: skip

Listener = Callable[[Event], None]
"""Hears every event, in order, on the training thread."""
