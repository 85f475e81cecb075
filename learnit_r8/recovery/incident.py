"""An incident: what was tried since a loss was refused, with the losses, the bad samples and the error at its end."""

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
"""Most samples with a non-finite loss that are remembered, to be named if it happens again."""

LOSSES_KEPT = 256
"""Number of last losses in a diagnosis."""


class Incident:
    """Collects what a diagnosis needs.

    Args:
        recovery: The recovery policy.
        persistence: Its checkpoint folder receives the diagnosis.
        announcer: Receives warnings and events.
        name_of: Returns a sample's name, given its index.

    Attributes:
        losses: The last losses, including refused ones.
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
        """Note what the replay check found after the last attempt."""
        if self.attempts:
            self.attempts[-1].replayed = seen

    def conclusion(self, state: RecoveryState, *, is_level: bool = False) -> str:
        """What was at fault, as the incident ends; see `conclusion`.

        Args:
            state: The incident's state.
            is_level: Whether it ends because losses stay higher with every restored state.
        """
        self.note_accepted(state.accepted + 1)
        return conclusion(self.attempts, is_level=is_level)

    def name_repeated(self, samples: tuple[int, ...]) -> None:
        """Warn of samples whose loss is not finite repeatedly: each costs one batch per epoch."""
        for sample in samples:
            if sample in self._bad_samples:
                self._announcer.warn_once(
                    f"bad sample {sample}",
                    f"the loss of sample {self._name_of(sample)!r} was not finite for the second time, while others of "
                    "its batch were finite: check its data. Every batch with it is refused.",
                )
            elif len(self._bad_samples) < MOST_REMEMBERED:
                self._bad_samples.add(sample)

    def say_how_to_restore(self, attempt: Attempt) -> None:
        """Warn, once, that there is nothing to restore, and say what makes it possible."""
        self._announcer.warn_once(
            "nothing to restore",
            f"the loss of step {attempt.step - 1} was {attempt.loss}, and there is nothing to restore the model from; "
            "the learning rate is lowered. Pass load_callback with state_callback, or call update_cpu_backup().",
        )

    def give_up(self, why: str, state: RecoveryState) -> NoReturn:
        """Raise `TrainingDiverged` with a full diagnosis.

        Args:
            why: The reason to give up; "" if all tries are used up.
            state: The incident's state.
        """
        diagnosis = Diagnosis(list(self.attempts), list(self.losses), state, self._recovery, why)
        store = self._persistence.store
        bundle = diagnosis.write(None if store is None else store.folder)
        error = TrainingDiverged(diagnosis.text(bundle))
        error.bundle = bundle
        self._announcer.tell(events.GaveUp, text=str(error), bundle=bundle)
        raise error


def not_finite_samples(reading: Reading, ticket: Ticket) -> tuple[int, ...]:
    """The samples whose own loss is not finite; none if only means were reported, or if it is all of the batch."""
    losses = np.atleast_1d(reading.means)
    if len(losses) != len(ticket.indices):
        return ()
    bad = ~(np.abs(losses) <= LARGEST_LOSS)
    return () if bad.all() else tuple(ticket.indices[bad].tolist())
