"""The rescue: carries out what recovery decides after a refused loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import events
from .announcer import Announcer
from .guard import LARGEST_LOSS, Verdict
from .losses import Reading
from .recovery import Recovery, RecoveryState, TrainingDiverged
from .safekeeping import Restored, Safekeeping
from .ticket import Ticket

MOST_REMEMBERED = 1000
"""Samples with a bad loss that are remembered, to be named when it happens again."""


class Rescue:
    """Restores the model, and remembers the incident.

    Args:
        recovery: What to try, and when to give up.
        safekeeping: Where to go back to.
        announcer: Who is told.
        name_of: What to call a sample.
    """

    def __init__(
        self, recovery: Recovery, safekeeping: Safekeeping, announcer: Announcer, name_of: Callable[[int], Any] = int
    ) -> None:
        self.recovery = recovery
        self._safekeeping = safekeeping
        self._announcer = announcer
        self._name_of = name_of
        self._state = RecoveryState()
        self._bad_samples: set[int] = set()

    @property
    def lr_factor(self) -> float:
        """What to multiply the scheduled learning rate by, in (0, 1]."""
        return 1.0 if self._state.factor == 1 else self.recovery.lr_factor(self._state)

    @property
    def is_steadying(self) -> bool:
        """Whether the next batch should be of low-loss samples."""
        return self._state.steady_left > 0

    def count_steady(self) -> None:
        """Note that a steady batch was drawn."""
        self._state = self._state._replace(steady_left=self._state.steady_left - 1)

    def skip_steady_if_over(self) -> None:
        """Ask for no more steady batches if the incident has ended; whoever draws ahead comes to them too late."""
        if not self._state.tries:
            self._state = self._state._replace(steady_left=0)

    def accepted(self) -> None:
        """Note a good loss."""
        before = self._state
        if before.factor == 1 and not before.tries:
            return
        self._state = self.recovery.accepted(before)
        if before.tries and not self._state.tries:
            self._announcer.tell(events.IncidentEnded)
        if self._state.factor == 1 and before.factor != 1:
            self._announcer.tell(events.LrRestored)

    def drifted(self, ticket: Ticket, reading: Reading, *, scheduled_lr: float) -> None:
        """Answer a drift: the learning rate is lowered, and that is all.

        Args:
            ticket: The batch.
            reading: Its loss, which was learned from.
            scheduled_lr: Learning rate of the schedule now.
        """
        self._state = self.recovery.drifted(self._state)
        self._announcer.warn_once(
            "drift",
            f"the loss has crept up to {reading.mean:.3g} at step {ticket.step}; the learning rate is lowered to "
            f"{scheduled_lr * self.lr_factor:.3g} for a while.",
        )

    def refused(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, scheduled_lr: float, most_steady: int
    ) -> Restored | None:
        """Answer a refused loss.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: What the guard says of it.
            scheduled_lr: Learning rate of the schedule now.
            most_steady: Most steady batches to draw.

        Returns:
            Where the model was put back to; None if there is nothing to restore.

        Raises:
            TrainingDiverged: the incident has used up its tries; the model was restored all the same.
        """
        samples = _not_finite(reading, ticket)
        state = self._state = self.recovery.refused(self._state, most_steady, partly=bool(samples))
        if samples:
            # Other samples of the batch had good losses with these weights.
            self._safekeeping.backup.confirm(ticket.draw)
            self._name_repeated(samples)
        self._announcer.tell(
            events.BatchRefused,
            epoch=ticket.epoch,
            loss=reading.mean,
            lr=ticket.lr,
            next_lr=scheduled_lr * self.lr_factor,
            tries=state.tries,
            samples=samples,
            reason=verdict.value,
        )
        restored = self._safekeeping.restore(state.tries)
        if restored is not None:
            self._announcer.tell(events.RolledBack, to_step=restored.step, source=restored.source)
        else:
            self._announcer.warn_once(
                "nothing to restore",
                f"the loss of step {ticket.step} was {reading.mean}, and there is nothing to restore the model from; "
                "the learning rate is lowered. Pass load_callback with state_callback, or call update_cpu_backup().",
            )
        if self.recovery.gives_up(state):
            raise TrainingDiverged(self._diagnosis(ticket, reading, restored, samples))
        return restored

    def _name_repeated(self, samples: tuple[int, ...]) -> None:
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

    def _diagnosis(self, ticket: Ticket, reading: Reading, restored: Restored | None, samples: tuple[int, ...]) -> str:
        tried = (
            f"The model was restored each time, last from {restored.source} of step {restored.step}: is that one good?"
            if restored
            else "The model was never restored: pass load_callback with state_callback, or call update_cpu_backup()."
        )
        which = f"Samples whose own loss was not finite in the last one: {list(samples)}." if samples else ""
        return (
            f"{self._state.tries} losses were refused with fewer than {self.recovery.heal_steps} good ones between "
            f"them, the last ({reading.mean}) at step {ticket.step} with lr={ticket.lr:.3g}. {tried} {which}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The incident."""
        return self._state._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._state = RecoveryState(**state)


def _not_finite(reading: Reading, ticket: Ticket) -> tuple[int, ...]:
    """The samples whose own loss is the reason; none where only means were reported, or where it was all of them."""
    losses = np.atleast_1d(reading.means)
    if len(losses) != len(ticket.indices):
        return ()
    bad = ~(np.abs(losses) <= LARGEST_LOSS)
    return () if bad.all() else tuple(ticket.indices[bad].tolist())
