"""The rescue: carries out what recovery decides after a refused loss, and remembers the incident."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from . import events
from .announcer import Announcer
from .backup import Reach
from .diagnosis import Attempt
from .guard import Verdict
from .incident import Incident, not_finite_samples
from .losses import Reading
from .recovery import CALM, CHECKPOINT_TRY, FRESH_STEPS, MOST_RAISED, OLDER_TRY, Recovery, RecoveryState
from .restoring import Restored
from .safekeeping import Safekeeping
from .ticket import Ticket

EQUAL_LOSSES = 8
"""Equal losses in a row after which the weights are looked at. Source: research/reliability.md, row 14a."""


class Rescue:
    """Restores the model, and remembers the incident.

    Args:
        recovery: What to try, and when to give up.
        safekeeping: Where to go back to.
        announcer: Who is told.
        name_of: What to call a sample.

    Attributes:
        num_restored: How often the model was put back.
        suspects: Tells whether the guard suspects something.
    """

    def __init__(
        self, recovery: Recovery, safekeeping: Safekeeping, announcer: Announcer, name_of: Callable[[int], Any] = int
    ) -> None:
        self.recovery = recovery
        self.num_restored = 0
        self.suspects: Callable[[], bool] = lambda: False
        self._safekeeping = safekeeping
        self._announcer = announcer
        self._state = CALM
        self._incident = Incident(recovery, safekeeping, announcer, name_of)
        self._num_equal = 0
        self._went_back_at = 0
        self._is_proven = False
        self._bad_arrays: set[str] = set()

    def lr(self, scheduled_lr: float) -> float:
        """The learning rate to use in place of the scheduled one."""
        return scheduled_lr if self._state is CALM else self.recovery.lr(self._state, scheduled_lr)

    @property
    def lr_factor(self) -> float:
        """What the scheduled learning rate is multiplied by, in (0, 1]; a ceiling may hold it down further."""
        return self.recovery.lr_factor(self._state)

    @property
    def is_calm(self) -> bool:
        """Whether the weights can be trusted as far as recovery knows: nothing was refused just now."""
        state = self._state
        return not state.tries or state.accepted >= (1 if state.tries == 1 and state.is_sudden else FRESH_STEPS)

    @property
    def doubts_level(self) -> bool:
        """Whether a raised level of the losses is a reason to go back: not where that is impossible, or was in vain."""
        can_restore = self._safekeeping.callbacks.load is not None and self._safekeeping.has_something
        return can_restore and self._state.tries < MOST_RAISED

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
            self._set(self._state._replace(steady_left=0))

    def _set(self, state: RecoveryState) -> None:
        self._state = CALM if state == CALM else state

    def accepted(self, loss: float) -> None:
        """Note a good loss."""
        losses = self._incident.losses
        # Losses differ from one another, however little: if they do not, the weights may be gone.
        self._num_equal = self._num_equal + 1 if losses and losses[-1] == loss else 0
        if self._num_equal == EQUAL_LOSSES - 1:
            self._safekeeping.look_at_weights()
        losses.append(loss)
        before = self._state
        if before is CALM:
            return
        if not before.accepted:
            # The first loss with the weights that were put back: as expected, or suspicious?
            self._is_proven = not self.suspects()
        self._set(self.recovery.accepted(before))
        self._tell_ends(before)

    def begin_anew(self) -> None:
        """End the incident, and lift what it has put on the learning rate: losses mean something else now."""
        before, self._state = self._state, CALM
        self._incident.attempts.clear()
        self._tell_ends(before)

    def _tell_ends(self, before: RecoveryState) -> None:
        if before.tries and not self._state.tries:
            self._incident.attempts.clear()
            self._announcer.tell(events.IncidentEnded)
        if self._state is CALM and (before.factor != 1 or before.ceiling is not None):
            self._announcer.tell(events.LrRestored)

    def drifted(self, loss: float, lr: float) -> None:
        """Answer losses that have crept up: a ceiling for the learning rate, and nothing else.

        Args:
            loss: The last of them, which was learned from.
            lr: The learning rate in use.
        """
        self._safekeeping.backup.unsettle()
        self._state = self.recovery.drifted(self._state, lr)
        self._announcer.tell(events.LrCapped, ceiling=self._state.ceiling, reason=Verdict.DRIFT.value)
        self._announcer.warn_once(
            "drift",
            f"the losses have crept up to {loss:.3g}; the learning rate stays below {self._state.ceiling:.3g} for a "
            "while.",
        )

    def refused(
        self,
        ticket: Ticket,
        reading: Reading,
        verdict: Verdict,
        *,
        scheduled_lr: float,
        most_steady: int,
        draws: int,
        step: int,
        is_calm: bool,
    ) -> Restored | None:
        """Answer a refused loss.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: What the guard says of it.
            scheduled_lr: Learning rate of the schedule now.
            most_steady: Most steady batches to draw.
            draws: Batches drawn so far.
            step: Steps reported so far.
            is_calm: Whether the guard suspected nothing before.

        Returns:
            Where the model was put back to; None if there is nothing to restore.

        Raises:
            TrainingDiverged: the incident has used up its tries; the model was restored all the same.
            RestoreError: the load callback raised for every state there is.
        """
        self._incident.losses.append(reading.mean)
        samples = not_finite_samples(reading, ticket)
        if samples:
            # Other samples of the batch had good losses with these weights.
            self._safekeeping.backup.confirm(ticket.draw)
            self._incident.name_repeated(samples)
        # A batch of the weights that were given up tells nothing of those that were put back.
        is_late = ticket.draw < self._went_back_at and self._state.tries > 0
        before = self._state
        if not is_late:
            sudden = verdict is Verdict.NOT_FINITE and is_calm
            self._state = self.recovery.refused(
                before, most_steady, partly=bool(samples), sudden=sudden, lr=scheduled_lr
            )
        told = {"epoch": ticket.epoch, "loss": reading.mean, "lr": ticket.lr, "next_lr": self.lr(scheduled_lr)}
        self._announcer.tell(
            events.BatchRefused, **told, tries=self._state.tries, samples=samples, reason=verdict.value
        )
        if is_late:
            return None
        self._tell_ceiling(before, verdict.value)
        reach = self._reach(verdict, is_own_fault=bool(samples) or (sudden and self.recovery.is_clear_sky(before)))
        return self._restore(reach, Attempt(step, reading.mean, verdict.value, ticket.lr, samples), draws)

    def damaged(self, array: str, *, step: int, scheduled_lr: float, most_steady: int, draws: int) -> Restored | None:
        """Answer a number of the model that is not finite, where the losses were fine.

        Args:
            array: Its name.
            step: Steps reported so far.
            scheduled_lr: Learning rate of the schedule now.
            most_steady: Most steady batches to draw.
            draws: Batches drawn so far.

        Returns:
            Where the model was put back to; None if there is nothing to restore, or where it did not help before.

        Raises:
            TrainingDiverged: as `refused`.
            RestoreError: likewise.
        """
        if array in self._bad_arrays or self._safekeeping.backup.is_empty or self._safekeeping.callbacks.load is None:
            self._announcer.warn_once(
                f"damaged {array}",
                f"{array!r} of the model's state is not finite at step {step}, and no backup is taken while it is. If "
                "it is meant to be so, leave it out of the state.",
            )
            return None
        self._bad_arrays.add(array)
        before = self._state
        self._state = self.recovery.refused(before, most_steady, lr=scheduled_lr)
        reason = f"{array!r} was not finite"
        self._tell_ceiling(before, reason)
        reach = self._reach(Verdict.NOT_FINITE, is_own_fault=self.recovery.is_clear_sky(before))
        last = self._incident.losses[-1] if self._incident.losses else math.nan
        return self._restore(reach, Attempt(step, last, reason, self.recovery.lr(before, scheduled_lr), ()), draws)

    def _tell_ceiling(self, before: RecoveryState, reason: str) -> None:
        ceiling = self._state.ceiling
        if ceiling not in (None, before.ceiling):
            self._announcer.tell(events.LrCapped, ceiling=ceiling, reason=reason)

    def _restore(self, reach: Reach, attempt: Attempt, draws: int) -> Restored | None:
        """Put the model back as far as this try asks for; give up if it was one too many."""
        tries = self._state.tries
        failures: list[str] = []
        doubts = tries == CHECKPOINT_TRY and self._doubts_backups
        before = self._incident.began_before(attempt) if doubts else None
        try:
            restored = self._safekeeping.restore(
                reach,
                draws=draws,
                tries=tries,
                before=before,
                failures=failures,
            )
        finally:
            self._incident.attempts.append(attempt)
            attempt.failures.extend(failures)
        # What could not be put back counts as a try.
        self._state = self._state._replace(tries=tries + len(failures))
        if restored is not None:
            self._went_back_at = draws
            self.num_restored += 1
            attempt.source, attempt.to_step = restored.source, restored.step
            self._announcer.tell(events.RolledBack, to_step=restored.step, source=restored.source)
        elif not failures:
            self._incident.say_how_to_restore(attempt)
        if failures and restored is None:
            self._incident.give_up("nothing could be put back", self._state)
        if self.recovery.gives_up(self._state) and (restored is not None or attempt.reason != Verdict.SPIKE.value):
            self._incident.give_up("", self._state)
        return restored

    def _reach(self, verdict: Verdict, *, is_own_fault: bool) -> Reach:
        """How far to go back; ``is_own_fault`` if the batch alone seems to be wrong."""
        if is_own_fault:
            return Reach.NEWEST
        if verdict is Verdict.LASTING_DRIFT:
            return Reach.OLDER
        return Reach.OLDER if self._doubts_backups and self._state.tries <= self.recovery.max_tries else Reach.GOOD

    @property
    def _doubts_backups(self) -> bool:
        """Whether what was put back twice did not help, though the rate was lowered: its first loss was bad too."""
        return self._state.tries >= OLDER_TRY and not self._is_proven

    def summary(self) -> str:
        """What recovery has done and still does, for people; "" if nothing."""
        state = self._state
        parts = [f"model restored {self.num_restored} times"] if self.num_restored else []
        if state.factor != 1:
            parts.append(f"learning rate x {self.lr_factor:.3g} after a refused loss, back to 1 by and by")
        if state.ceiling is not None:
            parts.append(f"learning rate kept below {state.ceiling:.3g}, as it went wrong at {state.culprit:.3g}")
        return "".join(f"; {part}" for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """The incident."""
        return self._state._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._set(RecoveryState(**state))
        self._incident.attempts.clear()
        self._went_back_at = 0
