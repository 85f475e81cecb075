"""Events of incidents: refusals, restores, quarantine, and their ends."""

from __future__ import annotations

from dataclasses import dataclass

from .event import Event


@dataclass(frozen=True)
class BatchRefused(Event):
    """A loss was not learned from.

    Attributes:
        epoch: The epoch of the batch, 0-based.
        loss: The refused mean loss; NaN, infinite or beyond float32.
        lr: Learning rate the batch was drawn with.
        next_lr: Learning rate from now on.
        tries: Number of refusals in a row, probes included.
        samples: Positions of the samples whose own loss was not finite; empty if only a mean was reported, or if
            that holds for all of them.
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
class CauseFound(Event):
    """Where the trouble began, as far as it was seen, before anything is put back.

    Attributes:
        text: One sentence; never more certain than what was seen.
        fault: What was at fault; one of `recovery.incidents.finding.KINDS`.
        where: The module, the parameter or the operation; "" if that is not known.
        samples: Positions of the samples to blame.
        is_certain: Whether an experiment has confirmed it.
    """

    text: str
    fault: str
    where: str
    samples: tuple[int, ...]
    is_certain: bool


@dataclass(frozen=True)
class DamageFound(Event):
    """An array in the state of the model was not finite when a backup was due; the losses may have been fine.

    Attributes:
        array: Dotted key of the array.
    """

    array: str


@dataclass(frozen=True)
class Probed(Event):
    """A witness, the first batch trained on after a backup, was drawn again to test weights.

    Attributes:
        of_step: Steps reported when that backup was taken.
        loss: The loss of the witness now.
        record: Its loss on the weights of the backup.
        is_present: Whether the present weights were tested, and not those of a backup.
        reason: Why weights are tested.
    """

    of_step: int
    loss: float
    record: float
    is_present: bool
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
    """A state could not be restored; recovery tries the next one.

    Attributes:
        to_step: Steps reported when it was taken.
        source: "backup" or the name of the checkpoint.
        reason: The error.
    """

    to_step: int
    source: str
    reason: str


@dataclass(frozen=True)
class LrCapped(Event):
    """The learning rate stays below a ceiling until `LrRestored`.

    Attributes:
        ceiling: The highest rate allowed.
        reason: The guard's verdict.
        is_share: Whether the ceiling is a share of the user's own rate.
        until: Until when it holds, in words.
    """

    ceiling: float
    reason: str
    is_share: bool = False
    until: str = ""


@dataclass(frozen=True)
class LrRestored(Event):
    """The learning rate is back on its schedule."""


@dataclass(frozen=True)
class SamplesQuarantined(Event):
    """Samples that refused batches have in common are no longer drawn.

    Attributes:
        samples: Their positions.
        refusals: Refused batches that each of them was in.
        text: The evidence, in words.
    """

    samples: tuple[int, ...]
    refusals: int
    text: str


@dataclass(frozen=True)
class SamplesReleased(Event):
    """Samples left the quarantine and are drawn again.

    Attributes:
        samples: Their positions.
    """

    samples: tuple[int, ...]


@dataclass(frozen=True)
class IncidentEnded(Event):
    """The cause of an incident is known, and training goes on.

    Attributes:
        text: What was found, in words.
    """

    text: str = ""


@dataclass(frozen=True)
class GaveUp(Event):
    """Recovery has tried everything; the run ends with TrainingDiverged.

    Attributes:
        text: The message of the exception.
        bundle: Path of the file with the diagnosis; None without a folder.
    """

    text: str
    bundle: str | None
