"""The recovery controller: carries out what recovery decides after a refused loss, and remembers the incident."""

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
"""Equal losses in a row after which the weights are looked at."""


class RecoveryController:
    """Restores the model, and remembers the incident.

    Args:
        recovery: What to try, and when to give up.
        persistence: Where to go back to.
        announcer: Who is told.
        table: Names the samples, and keeps those in quarantine.

    Attributes:
        num_restored: How often the model was put back.
        quarantine: The samples that refused losses have in common.
        replay: Whether what was restored is as it was.
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
        self._incident = Incident(recovery, persistence, announcer, table.name_of)
        self._weight_age = WeightAge()
        self._num_equal = 0
        self._went_back_at = 0
        self._looked_from = -1

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
        state = self._state
        if self._persistence.callbacks.load is None or not self._persistence.has_something:
            return False
        move = self.recovery.plan(state, steps=self._steps(Verdict.RAISED), is_level=True)
        return move is not Move.STUCK and not (state.tries and self.recovery.gives_up(state))

    def _steps(self, verdict: Verdict) -> set[int]:
        """When the states were taken that may be restored for a loss that was refused so."""
        steps = self._persistence.restorable_steps()
        if verdict is not Verdict.RAISED:
            return steps
        return {step for step in steps if step >= LEAST_LEVEL_STEPS or step == self._state.restored}

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

    def accepted(self, loss: float, indices: NDArray[np.int64]) -> None:
        """Note a good loss of a batch with these samples, int64[B]."""
        if self.quarantine.is_watching:
            self.quarantine.cleared(indices)
        losses = self._incident.losses
        # Losses differ from one another, however little: if they do not, the weights may be gone.
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
        """Forget the last report; ``loss`` is that of a good one, if it was noted already."""
        losses = self._incident.losses
        # What comes after it is done later, so that an equal loss of before is hardly ever taken for it.
        if loss is not None and losses and losses[-1] == loss:
            losses.pop()
        self._state, self._num_equal = state, num_equal

    def _looked(self, state: RecoveryState) -> RecoveryState:
        """Have the state looked at when its trial is over; the damage of this incident does not show in losses."""
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
        """End the incident, and lift what it has put on the learning rate: losses mean something else now."""
        before, self._state = self._state, CALM
        if before.tries:
            self._end("the losses mean something else from here on, as reset_baseline() says.")
        self._tell_rate(before)

    def _tell_rate(self, before: RecoveryState) -> None:
        if self._state is CALM and (before.factor != 1 or before.ceiling is not None):
            self._announcer.tell(events.LrRestored)

    def drifted(self, loss: float, lr: float) -> None:
        """Answer losses that have crept up: a ceiling for the learning rate, and nothing else.

        Args:
            loss: The last of them, which was learned from.
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
        """Answer a raised level that no older state has cured: it is the data, and the newest state is put back.

        Args:
            lr: The learning rate in use.
            draws: Batches drawn so far.
            step: Steps reported so far.

        Returns:
            Where the model was put back to; None if the incident has not gone back further than once.
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
        samples = self._noted(reading, ticket)
        # A batch of the weights that were given up tells nothing of those that were put back.
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
        """Remember a refused loss; the samples that alone are the reason."""
        self.replay.cancel()
        self._incident.losses.append(reading.mean)
        samples = not_finite_samples(reading, ticket)
        if samples:
            # Other samples of the batch had good losses with these weights.
            self._persistence.backup.confirm(ticket.draw)
            self._incident.name_repeated(samples)
        return samples

    def _blamed(self, verdict: Verdict, move: Move, attempt: Attempt, draws: int) -> RestoreResult | None:
        """Answer a loss that a sample is to blame for; where the model was put back to."""
        restored = None
        is_harmless = verdict is Verdict.NOT_FINITE and not self.recovery.gives_up(self._state)
        if is_harmless and self._persistence.is_sound():
            # It was refused before it could do any harm: nothing needs to be put back.
            self._incident.attempts.append(attempt)
        else:
            restored = self._restore(Reach.NEWEST, move, attempt, draws)
        self._convict(attempt.step)
        return restored

    def _is_explained(self, ticket: Ticket, samples: tuple[int, ...], verdict: Verdict, step: int) -> bool:
        """Whether a sample of the batch is to blame, and not the weights."""
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
        """Move on with the incident, or begin one; the state before, and where the model goes."""
        state = self._state
        self._incident.note_accepted(state.accepted)
        if is_explained and state.tries and state.is_sudden and not state.is_deeper:
            # Nothing but such samples has gone wrong so far: each time is an incident of its own.
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
        """Quarantine the samples that explain what was refused; then the rate is the schedule's again."""
        samples, refusals = self.quarantine.convict(step)
        before = self._state
        if samples and refusals >= before.tries:
            self._set(self.recovery.absolved(before))
            self._end(f"{self.quarantine.named(samples)} made the losses bad, and will not be drawn any more.")
            self._tell_rate(before)

    def damaged(
        self, array: str, *, step: int, scheduled_lr: float, most_steady: int, draws: int
    ) -> RestoreResult | None:
        """Answer a number of the model that is not finite, where the losses were fine.

        Args:
            array: Its name.
            step: Steps reported so far.
            scheduled_lr: Learning rate of the schedule now.
            most_steady: Most steady batches to draw.
            draws: Batches drawn so far.

        Returns:
            Where the model was put back to; None if there is nothing to restore.

        Raises:
            TrainingDiverged: as `refused`.
            RestoreError: as `refused`.
        """
        if self._persistence.backup.is_empty or self._persistence.callbacks.load is None:
            self._announcer.warn_once(
                f"damaged {array}",
                f"{array!r} of the model's state is not finite at step {step}, and no backup is taken while it is. If "
                "it is meant to be so, leave it out of the state.",
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
        """Put the model back as far as this try asks for; give up if it was one too many."""
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
            # What could not be put back counts as a try.
            self._state = self._state._replace(tries=state.tries + len(failures), stuck=state.stuck + len(failures))
        if failures and restored is None:
            self._incident.give_up("nothing could be put back", self._state)
        is_final = restored is not None or attempt.reason != Verdict.SPIKE.value
        if self.recovery.gives_up(self._state) and is_final and attempt.reason != Verdict.RAISED.value:
            # No older state was any better.
            self._return(attempt.step, draws)
            self._incident.give_up("", self._state)
        return restored

    def _return(self, step: int, draws: int) -> RestoreResult | None:
        """Put the model back to the state that the incident restored first, if it has gone back further since."""
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
        """Compare the loss of a batch with that of the first time, if it is one that was trained on again.

        Args:
            ticket: The batch.
            loss: Its loss.
            step: Steps reported so far, this one included.
            draws: Batches drawn so far.

        Returns:
            Where the model was put back to, as the loss has not repeated; else None.
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
        """What recovery has done and still does, for people; "" if nothing."""
        state = self._state
        parts = [f"model restored {self.num_restored} times"] if self.num_restored else []
        if state.factor != 1:
            parts.append(f"learning rate x {self.lr_factor:.3g} after a refused loss, back to 1 by and by")
        if state.ceiling is not None:
            parts.append(f"learning rate kept below {state.ceiling:.3g}, as it went wrong at {state.culprit:.3g}")
        if len(self._table.quarantined):
            parts.append(f"in quarantine: {self.quarantine.named(self._table.quarantined.tolist())}")
        return "".join(f"; {part}" for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """The incident."""
        return {**self._state._asdict(), "lineage": self._weight_age.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._set(RecoveryState(**{name: value for name, value in state.items() if name != "lineage"}))
        self._weight_age.load_state_dict(state.get("lineage", ()))
        self._incident.attempts.clear()
        self._persistence.backup.drop_aside()
        self._went_back_at = 0
        self._looked_from = -1
        self.replay.cancel()
