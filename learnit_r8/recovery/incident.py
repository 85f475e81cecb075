"""An incident: what was tried since a loss was refused, the losses, the samples to blame, and the error at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .. import events
from ..events.bus import Announcer
from ..sampling.ticket import Ticket
from ..table.losses import Reading
from ..table.records import LARGEST_LOSS
from .diagnosis import Attempt, Diagnosis, conclusion
from .incident_state import RecoveryState
from .policy import Recovery, TrainingDiverged

if TYPE_CHECKING:
    from .persistence import Persistence


MOST_REMEMBERED = 1000
"""Samples with a bad loss that are remembered, to be named when it happens again."""

LOSSES_KEPT = 256
"""Last losses that a diagnosis shows."""


class Incident:
    """Remembers what a diagnosis is made of.

    Args:
        recovery: What is tried.
        persistence: Where the diagnosis goes.
        announcer: Who is told.
        name_of: What to call a sample.

    Attributes:
        losses: The last ones, refused ones included.
        attempts: What was tried in this incident.
    """

    def __init__(
        self, recovery: Recovery, persistence: Persistence, announcer: Announcer, name_of: Callable[[int], Any]
    ) -> None:
        self.losses: deque[float] = deque(maxlen=LOSSES_KEPT)
        self.attempts: list[Attempt] = []
        self._recovery, self._persistence = recovery, persistence
        self._announcer, self._name_of = announcer, name_of
        self._bad_samples: set[int] = set()

    def note_accepted(self, count: int) -> None:
        """Note how many good losses have followed the last attempt."""
        if self.attempts:
            self.attempts[-1].accepted = count

    def note_replay(self, seen: str) -> None:
        """Note what the replay check saw after the last attempt."""
        if self.attempts:
            self.attempts[-1].replayed = seen

    def conclusion(self, state: RecoveryState, *, is_level: bool = False) -> str:
        """What was at fault, now that the incident ends; see `conclusion`.

        Args:
            state: Where it stood.
            is_level: Whether it ends because the losses stay higher with every state.
        """
        self.note_accepted(state.accepted + 1)
        return conclusion(self.attempts, is_level=is_level)

    def name_repeated(self, samples: tuple[int, ...]) -> None:
        """Warn of samples that are bad again and again: each costs a batch an epoch."""
        for sample in samples:
            if sample in self._bad_samples:
                self._announcer.warn_once(
                    f"bad sample {sample}",
                    f"the loss of sample {self._name_of(sample)!r} was not finite for the second time, while others of "
                    "its batch were fine: look at its data. Every batch with it is refused.",
                )
            elif len(self._bad_samples) < MOST_REMEMBERED:
                self._bad_samples.add(sample)

    def say_how_to_restore(self, attempt: Attempt) -> None:
        """Warn, once, that there is nothing to put back."""
        self._announcer.warn_once(
            "nothing to restore",
            f"the loss of step {attempt.step - 1} was {attempt.loss}, and there is nothing to restore the model from; "
            "the learning rate is lowered. Pass load_callback with state_callback, or call update_cpu_backup().",
        )

    def give_up(self, why: str, state: RecoveryState) -> NoReturn:
        """Raise `TrainingDiverged` with all there is to know.

        Args:
            why: A reason of its own, "" if tries were used up.
            state: Where the incident stands.
        """
        diagnosis = Diagnosis(list(self.attempts), list(self.losses), state, self._recovery, why)
        store = self._persistence.store
        bundle = diagnosis.write(None if store is None else store.folder)
        error = TrainingDiverged(diagnosis.text(bundle))
        error.bundle = bundle
        self._announcer.tell(events.GaveUp, text=str(error), bundle=bundle)
        raise error


def not_finite_samples(reading: Reading, ticket: Ticket) -> tuple[int, ...]:
    """The samples whose own loss is the reason; none where only means were reported, or where it was all of them."""
    losses = np.atleast_1d(reading.means)
    if len(losses) != len(ticket.indices):
        return ()
    bad = ~(np.abs(losses) <= LARGEST_LOSS)
    return () if bad.all() else tuple(ticket.indices[bad].tolist())
