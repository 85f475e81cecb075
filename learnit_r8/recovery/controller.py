"""The recovery controller: answers refused losses as the policy decides, and keeps the state of the incident."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.bus import Announcer
from ..guard.verdict import Verdict
from ..sampling.ticket import Ticket
from ..table.losses import Reading
from ..table.table import SampleTable
from .diagnosis import ARRAY_REASON, Attempt
from .incident import Incident, not_finite_samples
from .incident_state import CALM, Move, RecoveryState
from .ladder import RollbackDepth, WeightAge
from .policy import FRESH_STEPS, LEAST_LEVEL_STEPS, MOST_IN_A_ROW, Recovery
from .quarantine import Quarantine
from .ram_backup import Reach
from .replay_check import ReplayCheck
from .restore import RestoreResult

if TYPE_CHECKING:
    from .persistence import Persistence


EQUAL_LOSSES = 8
"""Number of equal losses in a row after which the weights are checked."""


class RecoveryController:
    """Answers refused losses: restores the model, lowers the learning rate, ends the incident or gives up.

    Args:
        recovery: The policy: what to try, and when to give up.
        persistence: Where to go back to.
        announcer: Tells listeners and the user.
        table: Names the samples, and keeps the quarantined ones.

    Attributes:
        num_restored: Number of times the model was restored.
        quarantine: Finds the samples that refused batches have in common.
        replay: Checks whether a restored model gives the same loss again.
    """

    def __init__(self, recovery: Recovery, persistence: Persistence, announcer: Announcer, table: SampleTable) -> None:
        self.recovery = recovery
        self.num_restored = 0
        self.quarantine = Quarantine(table, announcer)
        self.replay = ReplayCheck(persistence.backup, is_on=getattr(recovery, "replay_check", False))
        self._table = table
        self._persistence = persistence
        self._announcer = announcer
        self._state = CALM
        self._incident = Incident(recovery, persistence, announcer, table.storage.name_of)
        self._weight_age = WeightAge()
        self._num_equal = 0
        self._went_back_at = 0
        self._looked_from = -1

    def lr(self, scheduled_lr: float) -> float:
        """The learning rate to use in place of the scheduled one."""
        return scheduled_lr if self._state is CALM else self.recovery.lr(self._state, scheduled_lr)

    @property
    def lr_factor(self) -> float:
        """Factor of the scheduled learning rate, in (0, 1]; a ceiling may lower the rate further."""
        return self.recovery.lr_factor(self._state)

    @property
    def is_calm(self) -> bool:
        """Whether recovery has no reason to distrust the weights: nothing was refused recently."""
        state = self._state
        return not state.tries or state.accepted >= (1 if state.tries == 1 and state.is_sudden else FRESH_STEPS)

    @property
    def doubts_level(self) -> bool:
        """Whether to restore for a raised level of the losses: not if that is impossible, or has not helped before."""
        state = self._state
        if self._persistence.callbacks.load is None or not self._persistence.has_something:
            return False
        move = self.recovery.plan(state, steps=self._steps(Verdict.RAISED), is_level=True)
        return move is not Move.STUCK and not (state.tries and self.recovery.gives_up(state))

    def _steps(self, verdict: Verdict) -> set[int]:
        """Steps of the states that may be restored for a loss with this verdict."""
        steps = self._persistence.restorable_steps()
        if verdict is not Verdict.RAISED:
            return steps
        return {step for step in steps if step >= LEAST_LEVEL_STEPS or step == self._state.restored}

    @property
    def is_steadying(self) -> bool:
        """Whether the next batch should be a steady one, of low-loss samples."""
        return self._state.steady_left > 0

    def count_steady(self) -> None:
        """Note that a steady batch was drawn."""
        self._state = self._state._replace(steady_left=self._state.steady_left - 1)

    def skip_steady_if_over(self) -> None:
        """Drop the remaining steady batches if the incident is over; they come late where batches are drawn ahead."""
        if not self._state.tries:
            self._set(self._state._replace(steady_left=0))

    def _set(self, state: RecoveryState) -> None:
        self._state = CALM if state == CALM else state

    def accepted(self, loss: float, indices: NDArray[np.int64]) -> None:
        """Note a good loss of a batch with these samples, int64[B]."""
        if self.quarantine.is_watching:
            self.quarantine.cleared(indices)
        losses = self._incident.losses
        # Losses always differ a little: equal ones may mean that the weights are destroyed.
        self._num_equal = self._num_equal + 1 if losses and losses[-1] == loss else 0
        if self._num_equal == EQUAL_LOSSES - 1:
            self._persistence.look_at_weights()
        losses.append(loss)
        before = self._state
        if before is CALM:
            return
        if before.is_unseen:
            before = self._looked(before)
        after = self.recovery.accepted(before)
        self._set(after)
        if before.tries and not after.tries:
            self._end(self._incident.conclusion(before))
        self._tell_rate(before)

    def undo(self, state: RecoveryState, num_equal: int, loss: float | None) -> None:
        """Undo the last report; ``loss`` is its loss if it was good, whether or not it was recorded already."""
        losses = self._incident.losses
        # Little happens between recording a loss and completing its report, so an earlier equal loss is rarely popped.
        if loss is not None and losses and losses[-1] == loss:
            losses.pop()
        self._state, self._num_equal = state, num_equal

    def _looked(self, state: RecoveryState) -> RecoveryState:
        """Have the weights checked at the end of the trial, because this incident's damage does not show in losses."""
        persistence = self._persistence
        if persistence.callbacks.state is None or persistence.clean_step > self._looked_from:
            return state._replace(is_unseen=False)
        if state.accepted + 1 >= self.recovery.trial_of(state):
            persistence.look_at_weights()
        return state

    def _end(self, text: str) -> None:
        self._incident.attempts.clear()
        self._persistence.backup.drop_aside()
        self._announcer.tell(events.IncidentEnded, text=text)

    def begin_anew(self) -> None:
        """End the incident and return to the scheduled learning rate: losses mean something else from now on."""
        before, self._state = self._state, CALM
        if before.tries:
            self._end("reset_baseline() was called: losses mean something else from here on.")
        self._tell_rate(before)

    def _tell_rate(self, before: RecoveryState) -> None:
        if self._state is CALM and (before.factor != 1 or before.ceiling is not None):
            self._announcer.tell(events.LrRestored)

    def drifted(self, loss: float, lr: float) -> None:
        """Answer losses that have crept up: cap the learning rate, and do nothing else.

        Args:
            loss: The last one, which was learned from.
            lr: The learning rate in use.
        """
        self._persistence.backup.unsettle()
        self._state = self.recovery.drifted(self._state, lr)
        self._announcer.tell(events.LrCapped, ceiling=self._state.ceiling, reason=Verdict.DRIFT.value)
        self._announcer.warn_once(
            "drift",
            f"the losses have crept up to {loss:.3g}; the learning rate stays below {self._state.ceiling:.3g} for a "
            "while.",
        )

    def accept_level(self, *, lr: float, draws: int, step: int) -> RestoreResult | None:
        """Accept a raised level that no older state has cured: the data is the reason, so restore the newest state.

        Args:
            lr: The learning rate in use.
            draws: Batches drawn so far.
            step: Steps reported so far.

        Returns:
            What was restored; None if the incident has not gone back further than once.
        """
        state = self._state
        restored = self._return(step, draws)
        if restored is None:
            return None
        self._state = self.recovery.drifted(self.recovery.absolved(state), lr)
        text = self._incident.conclusion(state, is_level=True)
        self._announcer.tell(events.LrCapped, ceiling=self._state.ceiling, reason=Verdict.RAISED.value)
        self._announcer.warn_once("raised", f"the learning rate stays below {self._state.ceiling:.3g}: {text}")
        self._end(text)
        return restored

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
    ) -> RestoreResult | None:
        """Answer a refused loss.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: The guard's verdict.
            scheduled_lr: The scheduled learning rate.
            most_steady: Maximum number of steady batches to draw.
            draws: Batches drawn so far.
            step: Steps reported so far.
            is_calm: Whether the guard suspected nothing before this loss.

        Returns:
            What was restored; None if nothing was.

        Raises:
            TrainingDiverged: the incident has used up its tries; the model was restored nevertheless.
            RestoreError: the load callback raised for every state there is.
        """
        samples = self._noted(reading, ticket)
        # A batch drawn for the discarded weights says nothing about the restored ones.
        is_late = ticket.draw < self._went_back_at and self._state.tries > 0
        before, move, is_explained = self._state, Move.FIRST, False
        sudden = verdict is Verdict.NOT_FINITE and is_calm
        if not is_late:
            is_explained = self._is_explained(ticket, samples, verdict, step)
            before, move = self._answered(
                verdict, is_explained, step=step, lr=scheduled_lr, most_steady=most_steady, sudden=sudden
            )
        next_lr = self.lr(scheduled_lr)
        told = {"epoch": ticket.epoch, "loss": reading.mean, "lr": ticket.lr, "next_lr": next_lr}
        self._announcer.tell(
            events.BatchRefused, **told, tries=self._state.tries, samples=samples, reason=verdict.value
        )
        if is_late:
            return None
        self._tell_ceiling(before, verdict.value)
        attempt = Attempt(step, reading.mean, verdict.value, ticket.lr, samples, next_lr=next_lr)
        if is_explained:
            return self._blamed(verdict, move, attempt, draws)
        reach = Reach.OLDER if verdict is Verdict.LASTING_DRIFT else Reach.GOOD
        if sudden and self.recovery.is_clear_sky(before):
            reach = Reach.NEWEST
        return self._restore(reach, move, attempt, draws)

    def _noted(self, reading: Reading, ticket: Ticket) -> tuple[int, ...]:
        """Record a refused loss, and return the samples whose own losses are the only reason."""
        self.replay.cancel()
        self._incident.losses.append(reading.mean)
        samples = not_finite_samples(reading, ticket)
        if samples:
            # The other samples of the batch had good losses with these weights.
            self._persistence.backup.confirm(ticket.draw)
            self._incident.name_repeated(samples)
        return samples

    def _blamed(self, verdict: Verdict, move: Move, attempt: Attempt, draws: int) -> RestoreResult | None:
        """Answer a loss that a bad sample has caused; returns what was restored."""
        restored = None
        is_harmless = verdict is Verdict.NOT_FINITE and not self.recovery.gives_up(self._state)
        if is_harmless and self._persistence.is_sound():
            # It was refused before it could do any harm: nothing needs to be restored.
            self._incident.attempts.append(attempt)
        else:
            restored = self._restore(Reach.NEWEST, move, attempt, draws)
        self._convict(attempt.step)
        return restored

    def _is_explained(self, ticket: Ticket, samples: tuple[int, ...], verdict: Verdict, step: int) -> bool:
        """Whether a sample of the batch is the reason, and not the weights."""
        if verdict not in (Verdict.NOT_FINITE, Verdict.SPIKE):
            return False
        chance = self.quarantine.refused(ticket.indices, samples, step, epoch=ticket.epoch)
        state = self._state
        if samples:
            # The others of the batch show that the weights are fine.
            return state.in_a_row < MOST_IN_A_ROW
        is_shared = self.quarantine.explains(
            chance, is_finite=verdict is Verdict.SPIKE, is_on_time=self.recovery.is_on_time(state)
        )
        return is_shared and (state.accepted > 0 or not state.tries)

    def _answered(
        self, verdict: Verdict, is_explained: bool, *, step: int, lr: float, most_steady: int, sudden: bool
    ) -> tuple[RecoveryState, Move]:
        """Advance the incident, or begin one; returns the state before and where the model is to go."""
        state = self._state
        self._incident.note_accepted(state.accepted)
        if is_explained and state.tries and state.is_sudden and not state.is_deeper:
            # Only such samples were refused so far: each refusal is an incident of its own.
            kept, self._state = state, self.recovery.closed(state)
            self._end(self._incident.conclusion(kept))
            state = self._state
        if is_explained:
            move = Move.AGAIN if state.restored >= 0 else Move.FIRST
            self._state = self.recovery.blamed(state, step, again=self.quarantine.has_repeated)
            return state, move
        steps = self._steps(verdict) if state.tries else set()
        move = self.recovery.plan(state, steps=steps, is_level=verdict is Verdict.RAISED)
        if state.tries and self.recovery.is_isolated(state, move, sudden=sudden):
            self._end(self._incident.conclusion(state))
            state, move = self.recovery.closed(state)._replace(isolated=state.isolated + 1), Move.FIRST
        self._state = self.recovery.refused(state, most_steady, move=move, step=step, sudden=sudden, lr=lr)
        return state, move

    def _convict(self, step: int) -> None:
        """Quarantine the samples that explain the refusals; the learning rate then follows the schedule again."""
        samples, refusals = self.quarantine.convict(step)
        before = self._state
        if samples and refusals >= before.tries:
            self._set(self.recovery.absolved(before))
            self._end(f"{self.quarantine.named(samples)} made the losses bad and will no longer be drawn.")
            self._tell_rate(before)

    def damaged(
        self, array: str, *, step: int, scheduled_lr: float, most_steady: int, draws: int
    ) -> RestoreResult | None:
        """Answer an array of the model that is not finite while the losses were good.

        Args:
            array: Its name.
            step: Steps reported so far.
            scheduled_lr: The scheduled learning rate.
            most_steady: Maximum number of steady batches to draw.
            draws: Batches drawn so far.

        Returns:
            What was restored; None if there is nothing to restore.

        Raises:
            TrainingDiverged: as `refused`.
            RestoreError: as `refused`.
        """
        if self._persistence.backup.is_empty or self._persistence.callbacks.load is None:
            self._announcer.warn_once(
                f"damaged {array}",
                f"{array!r} in the model's state is not finite at step {step}; no backup is taken while that is so. If "
                "that is intended, leave it out of the state.",
            )
            return None
        before, move = self._answered(
            Verdict.NOT_FINITE, False, step=step, lr=scheduled_lr, most_steady=most_steady, sudden=True
        )
        self._state = self._state._replace(is_unseen=True)
        self._looked_from = step
        reason = f"{array!r} {ARRAY_REASON}"
        self._tell_ceiling(before, reason)
        reach = Reach.NEWEST if self.recovery.is_clear_sky(before) else Reach.GOOD
        last = self._incident.losses[-1] if self._incident.losses else math.nan
        rates = self.recovery.lr(before, scheduled_lr), self.lr(scheduled_lr)
        return self._restore(reach, move, Attempt(step, last, reason, rates[0], (), next_lr=rates[1]), draws)

    def _tell_ceiling(self, before: RecoveryState, reason: str) -> None:
        ceiling = self._state.ceiling
        if ceiling not in (None, before.ceiling):
            self._announcer.tell(events.LrCapped, ceiling=ceiling, reason=reason)

    def _restore(self, reach: Reach, move: Move, attempt: Attempt, draws: int) -> RestoreResult | None:
        """Restore the model as far back as this try requires; give up if it was one try too many."""
        state, persistence = self._state, self._persistence
        depth = None
        if move is not Move.FIRST and state.restored >= 0:
            least = LEAST_LEVEL_STEPS if attempt.reason == Verdict.RAISED.value else 0
            depth = RollbackDepth(state.first, state.restored, repeats=move is Move.AGAIN, least=least)
        failures: list[str] = []
        try:
            restored = persistence.restore(reach, draws=draws, depth=depth, failures=failures)
        finally:
            self._incident.attempts.append(attempt)
            attempt.failures.extend(failures)
        if restored is not None:
            self._note_restored(restored, attempt, draws)
        elif not failures:
            self._incident.say_how_to_restore(attempt)
        if failures:
            # Every state that could not be restored counts as a try.
            self._state = self._state._replace(tries=state.tries + len(failures), stuck=state.stuck + len(failures))
        if failures and restored is None:
            self._incident.give_up("nothing could be restored", self._state)
        is_final = restored is not None or attempt.reason != Verdict.SPIKE.value
        if self.recovery.gives_up(self._state) and is_final and attempt.reason != Verdict.RAISED.value:
            # No older state was any better.
            self._return(attempt.step, draws)
            self._incident.give_up("", self._state)
        return restored

    def _return(self, step: int, draws: int) -> RestoreResult | None:
        """Restore the state that this incident restored first, if it has gone back further since."""
        first = self._incident.attempts[0] if self._incident.attempts else None
        if first is None or not first.source or not self._state.is_deeper:
            return None
        restored = self._persistence.return_to(first.source, first.to_step, draws=draws)
        if restored is not None:
            self._tell_restored(restored, step, draws)
        return restored

    def _tell_restored(self, restored: RestoreResult, step: int, draws: int) -> None:
        self._weight_age.went_back(now=step, to=restored.step)
        self._went_back_at = draws
        self.num_restored += 1
        self._announcer.tell(events.RolledBack, to_step=restored.step, source=restored.source)

    def _note_restored(self, restored: RestoreResult, attempt: Attempt, draws: int) -> None:
        persistence, state = self._persistence, self._state
        if state.restored < 0:
            persistence.backup.set_aside(restored.step)
        distance = self._weight_age.age(state.first) - self._weight_age.age(restored.step)
        self._state = self.recovery.restored(
            state, restored.step, distance=distance, is_proven=restored.is_proven, proven_lr=restored.lr
        )
        if persistence.store is not None:
            persistence.store.give_up(restored.step, attempt.step)
        attempt.source, attempt.to_step = restored.source, restored.step
        if self.replay.is_on and restored.source == "backup":
            self.replay.begin(restored.step)
        self._tell_restored(restored, attempt.step, draws)

    def replayed(self, ticket: Ticket, loss: float, *, step: int, draws: int) -> RestoreResult | None:
        """Compare the loss of a replayed batch with its first loss; does nothing for any other batch.

        Args:
            ticket: The batch.
            loss: Its loss.
            step: Steps reported so far, this one included.
            draws: Batches drawn so far.

        Returns:
            What was restored, because the loss did not repeat; else None.
        """
        to = self._state.restored
        seen, is_other = self.replay.reported(ticket.draw, loss)
        if seen:
            self._incident.note_replay(seen)
            self._announcer.tell(events.Notice, text=seen, is_warning=is_other)
        if not is_other:
            return None
        restored = self._persistence.restore(Reach.GOOD, draws=draws, depth=RollbackDepth(to, to, repeats=True))
        self._weight_age.went_back(now=step, to=to)
        self._went_back_at = draws
        return restored

    def summary(self) -> str:
        """What recovery has done and is still doing, as text for people; "" if nothing."""
        state = self._state
        times = "once" if self.num_restored == 1 else f"{self.num_restored} times"
        parts = [f"model restored {times}"] if self.num_restored else []
        if state.factor != 1:
            parts.append(f"learning rate x {self.lr_factor:.3g} after a refused loss, returning to 1")
        if state.ceiling is not None:
            parts.append(f"learning rate capped at {state.ceiling:.3g}, since it went wrong at {state.culprit:.3g}")
        if len(self._table.quarantined):
            parts.append(f"in quarantine: {self.quarantine.named(self._table.quarantined.tolist())}")
        return "".join(f"; {part}" for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """The state of the incident, and the age of the weights."""
        return {**self._state._asdict(), "lineage": self._weight_age.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._set(RecoveryState(**{name: value for name, value in state.items() if name != "lineage"}))
        self._weight_age.load_state_dict(state.get("lineage", ()))
        self._incident.attempts.clear()
        self._persistence.backup.drop_aside()
        self._went_back_at = 0
        self._looked_from = -1
        self.replay.cancel()
