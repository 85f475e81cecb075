"""The host: what an adapter for a framework may use of ``r8.host``, beside the documented methods of `R8Scheduler`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import os

    import numpy as np
    from numpy.typing import NDArray

    from ..checkpoint.callbacks import Callbacks
    from ..engine.pace import Rates
    from ..engine.run import Member, RankGroup
    from ..recovery.recovery import RecoveryController
    from ..sampling.ticket import Ticket
    from ..scheduler import R8Scheduler
    from ..triggers import Condition

T = TypeVar("T")


class Host(Protocol):
    """What adapters rely on; ``tests/bridge/test_host.py`` holds them to it."""

    @property
    def member(self) -> Member:
        """The adapter that has batches in hand."""

    @property
    def seed(self) -> int:
        """The seed of the batches: as given, or that of the saved run that this one continues."""

    @property
    def say_once(self) -> Callable[..., None]:
        """``(topic, text, *, is_warning=True)``: tells user and listeners the first time a topic comes up."""

    @property
    def rates(self) -> Rates:
        """The learning rates: ``own`` is the user's own for the batch in hand, `Rates.after` that of a later step."""

    def join(self, member: Member) -> None:
        """Let an adapter hold batches and losses back."""

    def count_batches(self) -> None:
        """Note that a trainer counts the batches, too."""

    def leave_epoch(self) -> None:
        """Put in the weights that count for true, as the user's code after an epoch follows."""

    def share(self, group: RankGroup, resume: str | os.PathLike[str] | None = None) -> None:
        """Act as one scheduler with those of other ranks."""

    def adopt(
        self,
        callbacks: Callbacks,
        *,
        backup_every: int | str | Condition | None = None,
        clone: Callable[[Any], Any] | None = None,
        copy_into: Callable[[Any, Any], Any] | None = None,
        witness_size: int = 1,
        is_other: bool = False,
        stays: str = "",
    ) -> Callbacks:
        """Let an adapter's callbacks keep the model, beside the user's own; returns those that are called."""

    @property
    def controller(self) -> RecoveryController:
        """Answers refused losses, and asks for probes."""

    def draw_ahead(self, *, is_fetched: bool = False, is_offered: bool = False) -> Ticket | None:
        """Draw a batch while another one is being trained on, or one that was just offered; None if there is none."""

    def draw_epoch(self) -> list[Ticket]:
        """Draw what is left of the epoch at once."""

    def begin(self, ticket: Ticket, *, held_back: int = 0, is_late: bool = False) -> Ticket:
        """The ticket of a batch drawn ahead, with the present rate, as its training begins."""

    def hand_back(self, ticket: Ticket) -> None:
        """Return a batch that was not trained on: it is the next one drawn."""

    def leave_out(self, ticket: Ticket) -> None:
        """Give up a batch for which its epoch has no place left."""

    def discard(self, ticket: Ticket, *, is_missed: bool = False) -> None:
        """Count a batch whose training was undone before its loss was judged, or whose loss never came."""

    def between_steps(self, *, held_back: int = 0, closing: bool = False) -> None:
        """Do what must wait until the user's step is complete."""

    def may_be_due(self, step: int) -> bool:
        """Whether a backup or a checkpoint may be due once this many steps are reported."""

    def may_be_witness(self) -> bool:
        """Whether weights may be tested with the batch in hand later."""

    def look_at_weights(self) -> None:
        """Take a backup, which looks at every number, as soon as the user's step is complete."""

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; listeners hear how long the training waits for each."""

    def deciding_state(self, samples: NDArray[np.int64]) -> list[Any]:
        """What decides the next steps, to compare between ranks."""


if TYPE_CHECKING:

    def _is_host(r8: R8Scheduler) -> Host:
        return r8.host


def check_scheduler(name: str, value: Any) -> None:
    """Raise TypeError, naming the argument, unless ``value`` draws batches and takes reports."""
    if not (hasattr(value, "host") and hasattr(value, "report")):
        raise TypeError(f"{name} must be an R8Scheduler, got {value!r}.")


def num_left(r8: R8Scheduler) -> int:
    """Batches left in the epoch, or in the budget."""
    left = r8.steps_per_epoch - r8.pace.place % r8.steps_per_epoch
    return left if r8.total_steps is None else max(0, min(left, r8.total_steps - r8.pace.place))
