"""Events of normal training: steps, epochs, the learning rate, metrics."""

from __future__ import annotations

from dataclasses import dataclass

from .event import Event


@dataclass(frozen=True)
class StepDone(Event):
    """A batch was reported and learned from.

    Attributes:
        epoch: Its epoch, 0-based.
        progress: Finished share of the budget, in [0, 1].
        loss: Mean loss of the batch.
        expected_loss: Loss that the table predicted; NaN before it could.
        lr: Learning rate the batch was drawn with.
        batch_size: Samples in it.
        steady: Whether it was drawn to steady the training.
        own_seconds: Time inside the scheduler since the step before, listeners included.
        data_seconds: Time spent waiting for data since the step before, if an adapter measures it.
        suspicion: How close the guard is to refusing, from 0 (calm) to 1.
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
    """Some steps in a row as one event; a journal holds it in place of their `StepDone`.

    ``step`` and ``seconds`` are those of the last of them.

    Attributes:
        num_steps: Number of steps, >= 1.
        epoch: Epoch of the last, 0-based.
        progress: Finished share of the budget after the last, in [0, 1].
        loss: Mean of their mean losses.
        lowest, highest: Smallest and largest of those losses.
        last_loss: Mean loss of the last.
        expected_loss: Mean of the losses that the table predicted; NaN before it could.
        lr: Learning rate of the last.
        samples: Samples in them.
        num_steady: Number of steps drawn to steady the training.
        own_seconds: Time inside the scheduler for them, listeners included.
        data_seconds: Time spent waiting for their data, if an adapter measures it.
        suspicion: The highest suspicion among them.
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
class EpochDone(Event):
    """All steps of an epoch were reported.

    Attributes:
        epoch: The epoch, 0-based.
        progress: Finished share of the budget, in [0, 1].
        loss: Mean of its accepted batch losses; NaN without any.
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
class BatchAbandoned(Event):
    """A drawn batch was not reported.

    Attributes:
        epoch: Its epoch, 0-based.
        drawn_again: Whether it comes again at the end of the epoch; else it counts as a refused step.
    """

    epoch: int
    drawn_again: bool


@dataclass(frozen=True)
class MetricsLogged(Event):
    """The user logged metrics, for instance of a validation.

    Attributes:
        at_step: The step they belong to.
        metrics: Name and value.
    """

    at_step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class LrFound(Event):
    """The search for a learning rate ended.

    Attributes:
        lr: The rate found.
        num_steps: Steps that the search took, outside the budget.
    """

    lr: float
    num_steps: int


@dataclass(frozen=True)
class LrPlanned(Event):
    """Another schedule is in effect from now on.

    Attributes:
        lr_plan: Its learning rates, as in `RunStarted`.
    """

    lr_plan: tuple[float, ...]
