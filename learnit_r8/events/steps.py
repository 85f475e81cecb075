"""Events of normal training: steps, epochs, the learning rate, metrics."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .event import INFO, WARN, Event, Words
from .text import number

_HIGHER = (
    "acc accuracy ap auc auprc auroc bertscore bleu corr correct correlation dice em f1 fscore gain hits iou jaccard "
    "kappa likelihood map match mcc miou mrr ndcg pearson precision psnr r2 recall return returns reward rewards roc "
    "rouge score sensitivity similarity snr spearman specificity speed ssim success throughput top tpr win wins"
)
_LOWER = "bpb cer err error errors fid fpr loss mae mse negative nll perplexity ppl regret rmse time wer"
HIGHER_IS_BETTER, LOWER_IS_BETTER = frozenset(_HIGHER.split()), frozenset(_LOWER.split())
"""Words of names; those of the second decide even beside one of the first, as in "top5_error"."""

_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z][a-z])")


def mode_in_name(name: str) -> str | None:
    """The mode of a metric, "min" or "max", by the words of its name; None if it does not say."""
    words = {form for word in _BETWEEN_WORDS.split(name) for form in (word.lower(), word.lower().rstrip("0123456789"))}
    return "min" if words & LOWER_IS_BETTER else "max" if words & HIGHER_IS_BETTER else None


def is_lower_better(name: str) -> bool:
    """Whether a lower value of a metric is better, by the words of its name; of a name that does not say, it is.

    >>> [name for name in ("val_loss", "val_acc", "f1/macro", "top5_error", "energy") if is_lower_better(name)]
    ['val_loss', 'top5_error', 'energy']
    """
    return mode_in_name(name) != "max"


def mode_of(name: str | None, mode: str | None) -> str:
    """The mode that was given; None stands for that of a metric of this name."""
    return mode if mode is not None else "min" if not isinstance(name, str) or is_lower_better(name) else "max"


@dataclass(frozen=True)
class StepDone(Event):
    """A batch was reported and learned from.

    Attributes:
        epoch: Its epoch, 0-based.
        progress: Finished share of the budget, in [0, 1].
        loss: Mean loss of the batch, with the weights of the policy, if it gives any.
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

    @property
    def samples_per_second(self) -> float:
        """Mean over the epoch; NaN where its time is not known."""
        return self.samples / self.epoch_seconds if self.epoch_seconds > 0 else math.nan

    def words(self) -> Words:
        """See `Event`."""
        speed = number(self.samples_per_second)
        return Words(INFO, f"epoch {self.epoch + 1} done: mean loss {number(self.loss)}, {speed} samples/s")


@dataclass(frozen=True)
class BatchAbandoned(Event):
    """A drawn batch was not reported.

    Attributes:
        epoch: Its epoch, 0-based.
        drawn_again: Whether it comes again at the end of the epoch; else it counts as a refused step.
    """

    epoch: int
    drawn_again: bool

    def words(self) -> Words:
        """See `Event`."""
        return Words(WARN, f"a batch was not reported; {'it comes again' if self.drawn_again else 'refused'}")


@dataclass(frozen=True)
class MetricsLogged(Event):
    """The user logged metrics, for instance of a validation.

    Attributes:
        at_step: The step they belong to.
        metrics: Name and value.
        is_on_trial: Whether the weights were only tried or tested then, so that they say nothing of the run.
    """

    at_step: int
    metrics: dict[str, float]
    is_on_trial: bool = False

    @property
    def named(self) -> dict[str, float]:
        """The values by the names that views and loggers give them: those of weights on trial are marked."""
        return {f"{name}_on_trial": value for name, value in self.metrics.items()} if self.is_on_trial else self.metrics

    def words(self) -> Words:
        """See `Event`."""
        values = (f"{name} {number(value)}" for name, value in list(self.named.items())[:8])
        at = f" at step {self.at_step:,}" if self.at_step != self.step else ""
        return Words(INFO, f"measured{at}: {'  '.join(values)}")


@dataclass(frozen=True)
class LrFound(Event):
    """The search for a learning rate ended.

    Attributes:
        lr: The rate found.
        num_steps: Steps that the search took, outside the budget.
    """

    lr: float
    num_steps: int

    def words(self) -> Words:
        """See `Event`."""
        return Words(INFO, f"learning rate {number(self.lr)} found in {self.num_steps} steps")


@dataclass(frozen=True)
class LrPlanned(Event):
    """Another schedule is in effect from now on.

    Attributes:
        lr_plan: Its learning rates, as in `RunStarted`.
    """

    lr_plan: tuple[float, ...]
