"""The run: its parts, and who else has joined it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..events.bus import Announcer
    from ..guard.monitor import Sentry
    from ..recovery.agreement import Agreement, Channel
    from ..recovery.persistence import Persistence
    from ..recovery.recovery import RecoveryController
    from ..sources.source import Source
    from ..sources.ticket import Ticket
    from ..state.early_stop import EarlyStop
    from .control import Requests
    from .emitter import EventEmitter
    from .pace import Pace, Rates
    from .turns import Turns


class Member:
    """What draws batches ahead and may report their losses late: an adapter's; by itself, where none has joined."""

    def settle(self) -> object:
        """Report every loss held back, as an epoch or the run ends or a checkpoint is about to be saved."""

    def forget(self) -> object:
        """Drop the losses held back, as a saved state was loaded and they belong to the run before."""

    def in_hand(self) -> Ticket | None:
        """The batch that the next loss passed to `R8Scheduler.update_with_loss` belongs to; None if there is none."""
        return None

    def take(self, ticket: Ticket) -> object:
        """Note that a batch no longer waits for its loss."""


class Trainer:
    """Trains on batches that were taken before, and joins whoever hands them out; by itself, a loop without an adapter.

    Args:
        between_steps: That of the engine.
    """

    def __init__(self, between_steps: Callable[[], None]) -> None:
        self._between_steps = between_steps

    def between_steps(self) -> None:
        """A batch is asked for, between two steps of the training."""
        self._between_steps()

    def settle(self) -> object:
        """Report every loss that is held back."""

    def forget(self) -> object:
        """Drop the losses that are held back."""

    def before_iteration(self) -> None:
        """An iteration, for which a loader sets itself up, is about to begin."""

    def before_first_batch(self) -> None:
        """The first batch of an iteration is about to be taken."""

    def before_probe(self) -> None:
        """A probe is about to be handed out: the gradients of other batches must not be added to its own."""

    def hand_out(self, item: Any) -> object:
        """A batch of a feed is handed out, of which the next loss is."""


class RankGroup(Protocol):
    """The processes that train one model together; `run_state.share` calls `check_same_run` first.

    Attributes:
        channel: Carries their messages.
    """

    channel: Channel

    def check_same_run(self, facts: Mapping[str, Any]) -> None:
        """Raise RuntimeError unless these facts about the scheduler are the same on all ranks."""

    def shared_clock(self, own: Callable[[], float]) -> Callable[[], float]:
        """A clock that shows the same time on all ranks, ``now``; ``own()`` is the time on the clock of this one."""

    def shared_store(self, own: Any) -> Any:
        """Wrap this rank's checkpoint store in one to which only rank 0 writes."""


@dataclass
class Run:
    """The parts of a run. What changes with a step is in them; the engine owns their order, and nothing else.

    Attributes:
        source: Hands out batches; holds the table.
        pace: The position of the run.
        sentry: Judges losses with the guard.
        persistence: Takes backups and checkpoints.
        controller: Answers refused losses.
        announcer: Passes events to listeners.
        emitter: Tells of steps, epochs and samples.
        agreement: Decides together with other ranks, if there are any.
        rates: The learning rate of each step.
        early_stop: Ends the run before its budget is used up.
        requests: Requests to pause, stop or save.
        turns: Lets one call at a time change the run.
        name: Name of the run, "" if it has none.
        settings: The configuration as texts, for display.
        member: The adapter that holds batches; it replaces the one that joined before.
        saving: Held by the one thread that takes backups and writes checkpoints; others that draw wait for it.
        num_in_vain: Loops that began after the budget was spent.
    """

    source: Source
    pace: Pace
    sentry: Sentry
    persistence: Persistence
    controller: RecoveryController
    announcer: Announcer
    emitter: EventEmitter
    agreement: Agreement
    rates: Rates
    early_stop: EarlyStop
    requests: Requests
    turns: Turns
    name: str
    settings: Mapping[str, str]
    member: Member = field(default_factory=Member)
    saving: threading.RLock = field(default_factory=threading.RLock)
    num_in_vain: int = 0
