"""Events of incidents: refusals, restores, quarantine, and their ends."""

from __future__ import annotations

from dataclasses import dataclass

from .event import ALERT, GOOD, INFO, WARN, Event, Words
from .text import few, file_name, number


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

    def words(self) -> Words:
        """See `Event`."""
        samples = f", samples {few(self.samples, 5)}" if self.samples else ""
        # NaN where the rate is the user's own and was never told.
        is_other = self.next_lr != self.lr == self.lr
        rate = f"; lr {number(self.lr)} -> {number(self.next_lr)}" if is_other else ""
        again = f" ({self.tries} in a row)" if self.tries > 1 else ""
        return Words(ALERT, f"loss {number(self.loss)} refused, {self.reason}{again}{samples}{rate}", "S")


@dataclass(frozen=True)
class CauseFound(Event):
    """Where the trouble began, as far as it was seen, before anything is put back.

    Attributes:
        text: One sentence; never more certain than what was seen.
        fault: What was at fault; one of `recovery.cause.KINDS`.
        where: The module, the parameter or the operation; "" if that is not known.
        samples: Positions of the samples to blame.
        is_certain: Whether an experiment has confirmed it.
    """

    text: str
    fault: str
    where: str
    samples: tuple[int, ...]
    is_certain: bool

    def words(self) -> Words:
        """See `Event`."""
        return Words(ALERT, f"cause: {self.text}")


@dataclass(frozen=True)
class DamageFound(Event):
    """An array in the state of the model was not finite when a backup was due; the losses may have been fine.

    Attributes:
        array: Dotted key of the array.
    """

    array: str

    def words(self) -> Words:
        """See `Event`."""
        return Words(ALERT, f"the model holds a number that is not finite, in {self.array}", "S")


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

    def words(self) -> Words:
        """See `Event`."""
        weights = "present weights" if self.is_present else "weights of a backup"
        losses = f"loss {number(self.loss)}, was {number(self.record)}"
        return Words(INFO, f"probe of step {self.of_step:,}: {losses} ({weights})", "P")


@dataclass(frozen=True)
class RolledBack(Event):
    """The model was restored.

    Attributes:
        to_step: Steps reported when the restored state was taken.
        source: "backup" or the name of the checkpoint.
    """

    to_step: int
    source: str

    def words(self) -> Words:
        """See `Event`."""
        if self.step == self.to_step:
            return Words(ALERT, "the weights set aside were restored", "B")
        state = f"{self.source} of step {self.to_step:,}"
        return Words(ALERT, f"model restored from {state} ({self.to_step - self.step:+,} steps)", "B")


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

    def words(self) -> Words:
        """See `Event`."""
        where = f"{file_name(self.source)} of step {self.to_step:,}"
        return Words(WARN, f"{where} could not be restored: {self.reason}")


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

    def words(self) -> Words:
        """See `Event`."""
        share = " of yours" if self.is_share else ""
        until = f", {self.until}" if self.until else ""
        return Words(WARN, f"learning rate held below {number(self.ceiling)}{share}: {self.reason}{until}")


@dataclass(frozen=True)
class LrRestored(Event):
    """The learning rate is back on its schedule."""

    def words(self) -> Words:
        """See `Event`."""
        return Words(GOOD, "learning rate back on its schedule")


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

    def words(self) -> Words:
        """See `Event`."""
        return Words(ALERT, f"quarantine: {self.text}", "Q")


@dataclass(frozen=True)
class SamplesReleased(Event):
    """Samples left the quarantine and are drawn again.

    Attributes:
        samples: Their positions.
    """

    samples: tuple[int, ...]

    def words(self) -> Words:
        """See `Event`."""
        return Words(INFO, f"out of quarantine: samples {few(self.samples, 5)}")


@dataclass(frozen=True)
class IncidentEnded(Event):
    """The cause of an incident is known, and training goes on.

    Attributes:
        text: What was found, in words.
    """

    text: str = ""

    def words(self) -> Words:
        """See `Event`."""
        return Words(GOOD, f"found: {self.text}" if self.text else "recovered")


@dataclass(frozen=True)
class GaveUp(Event):
    """Recovery has tried everything; the run ends with TrainingDiverged.

    Attributes:
        text: The message of the exception.
    """

    text: str

    def words(self) -> Words:
        """See `Event`."""
        return Words(ALERT, f"gave up: {self.text}")
