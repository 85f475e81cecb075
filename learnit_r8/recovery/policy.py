"""The recovery policy: what to try after a refused loss, and when to give up."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from .._validation import is_number, whole_number
from .incident_state import BEFORE_INCIDENT, CALM, Move, RecoveryState


class TrainingDiverged(RuntimeError):
    """Losses are still refused after recovery has tried everything it can.

    Attributes:
        bundle: Path of a JSON file with the attempts and the last losses; None if there is no folder for it.
    """

    bundle: str | None = None


@dataclass(frozen=True)
class Recovery:
    """Restore the model, lower the learning rate, train on low-loss data for a while; give up after some tries.

    Attributes:
        factors: Learning-rate factors of an incident, each in (0, 1]: the first applies from its first refusal, the
            next one whenever a refusal lowers the rate further; the last one is then kept.
        hold_steps: Number of good steps for which the factor is kept.
        ramp_steps: Number of good steps over which it then rises linearly to 1.
        steady_steps: Batches of low-loss samples after a refusal, at most a quarter of an epoch.
        heal_steps: Good losses in a row that end an incident in which every refused loss was not finite, and
        calm_steps: those that end any other incident: the restored state has then passed its trial. The trial also
            takes as many good losses as there were steps between that state and the refusal, plus half of
            ``heal_steps``, so that the same trouble would have come again. After a spike the lowered rate is a
            ceiling, whatever the ramp says, which begins to rise after ``calm_steps`` good losses. A sudden loss that
            is not finite sets no ceiling, because its batch is the likely cause.
        max_tries: Refusals in one incident that may be answered without going further back; the next one gives up.
        relax_steps: Good steps after which the ceiling rises by 5 %, repeatedly, up to the rate at which training went
            wrong; then it is lifted. After a first incident it doubles instead while it is below half the rate at
            which the restored state passed its trial; every further incident makes it rise four times as slowly.
        trial_steps: Good losses after which a backup counts as proven.
        older_steps: Minimum number of steps between the two proven backups that are kept.
        replay_check: Whether to train on the first batch after a restored backup again, whose loss must repeat: if
            not, memory or hardware is at fault, or training is not deterministic. Takes up to two steps.

    Raises:
        ValueError: an attribute outside its range.

    Source: measured in benchmarks/recovery.py and benchmarks/incidents.py.
    """

    factors: tuple[float, ...] = (0.5, 0.1, 0.02)
    hold_steps: int = 32
    ramp_steps: int = 256
    steady_steps: int = 32
    heal_steps: int = 32
    max_tries: int = 4
    calm_steps: int = 128
    relax_steps: int = 8
    trial_steps: int = 64
    older_steps: int = 512
    replay_check: bool = False

    def __post_init__(self) -> None:
        if (
            not isinstance(self.factors, tuple)
            or not self.factors
            or not all(is_number(f) and 0 < f <= 1 for f in self.factors)
        ):
            raise ValueError(f"factors must be a tuple of numbers in (0, 1], got {self.factors!r}.")
        for name in ("hold_steps", "ramp_steps", "steady_steps", "max_tries", "older_steps"):
            whole_number(name, getattr(self, name), least=0)
        if not isinstance(self.replay_check, bool):
            raise TypeError(f"replay_check must be True or False, got {self.replay_check!r}.")
        for name in ("heal_steps", "relax_steps", "calm_steps", "trial_steps"):
            whole_number(name, getattr(self, name), least=1)

    def is_clear_sky(self, state: RecoveryState) -> bool:
        """Whether nothing was refused recently, or good losses have followed since."""
        return state.is_sudden and (not state.tries or state.accepted >= FRESH_STEPS)

    def plan(self, state: RecoveryState, *, steps: Collection[int], is_level: bool = False) -> Move:
        """Where the next refusal of an incident takes the model.

        A proven state may be tried once more, at a lower rate; after that, every try goes strictly back.

        Args:
            state: The state before the refusal.
            steps: Steps at which the restorable states were taken.
            is_level: Whether the reason is a raised level. Its cause creeps up and may be in a state that passed its
                trial, so a proven state is only tried again if there is no older one.
        """
        if not state.tries:
            return Move.FIRST
        has_older = any(step < state.restored for step in steps)
        if state.is_proven and not state.is_again and state.restored in steps and not (is_level and has_older):
            return Move.AGAIN
        return Move.FURTHER if has_older else Move.STUCK

    def refused(
        self,
        state: RecoveryState,
        steady_limit: int,
        *,
        move: Move = Move.STUCK,
        step: int = -1,
        sudden: bool = True,
        lr: float = 0.0,
    ) -> RecoveryState:
        """The state after one more refused loss.

        The first try of an older state does not lower the rate further: if it helps, the weights were the cause.

        Args:
            state: The state before.
            steady_limit: Maximum number of steady batches.
            move: As `plan` returned it.
            step: Steps reported, the refused one included.
            sudden: Whether the loss was not finite and nothing was suspected before.
            lr: The scheduled learning rate; 0 sets no ceiling.
        """
        # If the restored state had a good loss first, the update may have failed, and not the state.
        lowers = move is not Move.FURTHER or state.is_deeper or (not sudden and state.accepted > 0)
        lowered = state.lowered + (lowers and state.tries > 0)
        factor = min(self.factors[min(lowered, len(self.factors) - 1)], self.lr_factor(state))
        is_early = not sudden and not state.tries and state.ceiling is None and 0 <= step <= EARLY_STEPS
        if is_early:
            # An early spike often has other causes than the rate, and a ceiling would hold down the whole warm-up.
            factor = self.lr_factor(state)
        is_clear = is_early or (sudden and self.is_clear_sky(state))
        refused = state._replace(
            tries=state.tries + 1,
            factor=factor,
            accepted=0,
            steady_left=0 if is_early else min(self.steady_steps, steady_limit),
            is_sudden=sudden and (state.is_sudden or not state.tries),
            lowered=lowered,
            stuck=state.stuck + (move is not Move.FURTHER),
            first=state.first if state.tries else step,
            is_deeper=state.is_deeper or move is Move.FURTHER,
            owns_ceiling=state.owns_ceiling if state.tries else state.ceiling is None,
        )
        if is_clear or not lr:
            return refused
        now = self.lr(state, lr)
        if refused.is_sudden or not state.tries:
            ceiling = factor * (lr if refused.is_sudden else min(lr, now))
        elif lowers:
            ceiling = self._lowered(state, min(factor * lr, now), now, move)
        else:
            ceiling = now
        return _capped(refused, ceiling, now)

    def _lowered(self, state: RecoveryState, ceiling: float, now: float, move: Move) -> float:
        """The ceiling after a rate has failed again."""
        ceiling = min(ceiling, now * HARSHER ** _sharpness(state.accepted))
        if move is Move.AGAIN and state.accepted and state.proven_lr:
            # At half the rate at which this state passed its trial, another failure has another cause.
            ceiling = min(ceiling, state.proven_lr / 2)
        return ceiling

    def blamed(self, state: RecoveryState, step: int, *, again: bool) -> RecoveryState:
        """The state after a loss was refused because of a sample in its batch, not of the weights or the rate.

        Args:
            state: The state before.
            step: Steps reported, the refused one included.
            again: Whether that sample explains the earlier refusals too: then the rate follows the schedule at once.
        """
        first = state.first if state.tries else step
        factor = 1.0 if again and state.is_sudden and not state.is_deeper else self.lr_factor(state)
        owns = state.owns_ceiling if state.tries else state.ceiling is None
        return state._replace(
            tries=max(1, state.tries),
            factor=factor,
            accepted=0,
            steady_left=0,
            first=first,
            owns_ceiling=owns,
            in_a_row=state.in_a_row + 1,
        )

    def restored(
        self, state: RecoveryState, step: int, *, distance: int, is_proven: bool, proven_lr: float = math.nan
    ) -> RecoveryState:
        """The state after the model was restored.

        Args:
            state: As `refused` returned it.
            step: Steps reported when the restored state was taken.
            distance: Training steps between it and the first refusal of the incident.
            is_proven: Whether it had passed its trial before.
            proven_lr: The learning rate during that trial; NaN if unknown.
        """
        return state._replace(
            restored=step,
            is_again=state.is_again or step == state.restored,
            is_proven=is_proven,
            distance=distance,
            proven_lr=None if math.isnan(proven_lr) else proven_lr,
            trial=distance + self.heal_steps // 2,
        )

    def is_on_time(self, state: RecoveryState) -> bool:
        """Whether a refusal now comes just when damage in the restored state would show again."""
        return state.tries > 0 and state.restored >= 0 and abs(state.accepted + 1 - state.distance) <= 1

    def is_isolated(self, state: RecoveryState, move: Move, *, sudden: bool) -> bool:
        """Whether a refusal is an incident of its own, although the trial of the last one is not over.

        Damage in the restored state would show again after as many good losses as there were steps between that state
        and the refusal. A refusal that comes sooner than that, after some good losses, has another cause; so has one
        after many good losses if there is nothing older to try.

        Args:
            state: The state before the refusal.
            move: As `plan` returned it.
            sudden: Whether the loss was not finite and nothing was suspected before.
        """
        distance, accepted = state.distance, state.accepted
        if state.is_unseen or state.restored < 0:
            return False
        if sudden and state.is_sudden and FRESH_STEPS <= accepted < distance - FRESH_STEPS:
            return True
        # Spikes and levels are not seen equally soon each time.
        is_sooner = accepted < distance // 2
        return accepted >= self.heal_steps and (is_sooner or sudden is not state.is_sudden or move is Move.STUCK)

    def closed(self, state: RecoveryState) -> RecoveryState:
        """The state after an incident; the learning rate keeps its factor and ceiling, which rise as usual."""
        return state._replace(**BEFORE_INCIDENT)

    def absolved(self, state: RecoveryState) -> RecoveryState:
        """The state once a sample is known to be the cause: only a ceiling of an earlier incident stays."""
        if state.owns_ceiling or state.ceiling is None:
            return CALM
        return state._replace(**BEFORE_INCIDENT, factor=1.0, steady_left=0)

    def drifted(self, state: RecoveryState, lr: float) -> RecoveryState:
        """The state after losses have crept up: the learning rate is capped at half of ``lr`` for a while."""
        return _capped(state._replace(accepted=0), lr / 2, lr)

    def accepted(self, state: RecoveryState) -> RecoveryState:
        """The state after a good loss."""
        accepted = state.accepted + 1
        if state.tries and accepted >= self.trial_of(state) and not state.is_unseen:
            state = self.closed(state)
        state = state._replace(accepted=accepted, in_a_row=0)
        if state.ceiling is not None and accepted >= self.calm_steps:
            pause = self.relax_steps * SLOWER ** max(0, state.num_capped - 1)
            state = state if accepted % pause else _relaxed(state, state.ceiling)
        if accepted < self.hold_steps + self.ramp_steps or state.tries or state.ceiling is not None:
            return state
        return CALM

    def trial_of(self, state: RecoveryState) -> int:
        """Number of good losses in a row that end the incident."""
        return max(self.heal_steps if state.is_sudden else self.calm_steps, state.trial)

    def lr_factor(self, state: RecoveryState) -> float:
        """Factor of the scheduled learning rate, in (0, 1]."""
        ramped = (
            (state.accepted - self.hold_steps) / self.ramp_steps
            if self.ramp_steps
            else float(state.accepted >= self.hold_steps)
        )
        return state.factor + (1 - state.factor) * min(1.0, max(0.0, ramped))

    def lr(self, state: RecoveryState, scheduled_lr: float) -> float:
        """The learning rate to use in place of the scheduled one."""
        lr = scheduled_lr * self.lr_factor(state)
        return lr if state.ceiling is None else min(lr, state.ceiling)

    def gives_up(self, state: RecoveryState) -> bool:
        """Whether the incident has used up its tries, or too many incidents have followed one another."""
        return max(state.stuck, min(1, state.tries)) > self.max_tries or state.isolated > ISOLATED * self.max_tries


LEAST_LEVEL_STEPS = 176
"""A state of fewer steps has no loss level of its own, so whether losses are raised cannot be told."""

EARLY_STEPS = 80
"""Within this many steps of a run, a first spike does not lower the rate; a second one does."""

ISOLATED = 4
"""How many times more incidents than tries may follow one another without a passed trial."""

MOST_IN_A_ROW = 8
"""Maximum number of refusals in a row blamed on samples when only some losses of each batch were bad."""

FRESH_STEPS = 4
"""Good losses after a refusal that show that the batch was bad, and not the weights."""

RELAX = 1.05
"""What a ceiling is multiplied by when it rises."""

SLOWER = 4
"""How many times more slowly it rises with every further incident."""

QUICK_STEPS = 32
"""Good losses within which a far too high rate fails."""

HARSHER = 0.2
"""Factor of a rate that has failed again within an incident, applied once or several times."""


def _sharpness(accepted: int) -> int:
    """How often to apply `HARSHER` to a rate that failed after this many good losses: the sooner, the more often."""
    # Without a single good loss, the update is not the cause; the state or the batch is.
    return 3 if 0 < accepted < FRESH_STEPS else 2 if 0 < accepted < QUICK_STEPS else 1


def _capped(state: RecoveryState, ceiling: float, culprit: float) -> RecoveryState:
    """The state with a ceiling no higher than this; counts the incident if it is its first ceiling."""
    return state._replace(
        ceiling=ceiling if state.ceiling is None else min(ceiling, state.ceiling),
        culprit=max(culprit, state.culprit),
        num_capped=state.num_capped + (state.tries <= 1),
    )


def _relaxed(state: RecoveryState, ceiling: float) -> RecoveryState:
    """The state with a slightly higher ceiling, or twice as high while the restored state has borne that before."""
    is_borne = state.num_capped <= 1 and 2 * ceiling <= (state.proven_lr or 0.0)
    ceiling *= 2 if is_borne else RELAX
    if ceiling >= state.culprit:
        return state._replace(ceiling=None, culprit=0.0, num_capped=0, proven_lr=None)
    return state._replace(ceiling=ceiling)
