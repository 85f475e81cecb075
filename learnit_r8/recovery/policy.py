"""Recovery: what to try after a refused loss, and when to give up."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from .._validation import is_number, whole_number
from .incident_state import BEFORE_INCIDENT, CALM, Move, RecoveryState


class TrainingDiverged(RuntimeError):
    """The loss stayed refused after everything that recovery can try.

    Attributes:
        bundle: Path of a JSON file with what was tried and the last losses; None where there is no folder for it.
    """

    bundle: str | None = None


@dataclass(frozen=True)
class Recovery:
    """Restore the model, lower the learning rate, train on low-loss data for a while; give up after some tries.

    Attributes:
        factors: Learning-rate factors of an incident, each in (0, 1]: the first at its first refusal, the next one
            whenever a refusal lowers the rate further; the last one goes on.
        hold_steps: Good steps for which the factor is kept.
        ramp_steps: Good steps over which it then rises to 1, linearly.
        steady_steps: Batches of low-loss samples after a refusal, at most a quarter of an epoch.
        heal_steps: Good losses in a row that end an incident of losses that were not finite, and
        calm_steps: those that end any other: then the restored state has passed its trial. Half of ``heal_steps`` more
            than there were steps between that state and the refusal are needed besides, so that whatever came of it
            before would have come again. After a spike the lowered rate is a ceiling, whatever the ramp says, and
            begins to rise after ``calm_steps`` good losses. A loss that is not finite out of a clear sky sets no
            ceiling: it is its batch's.
        max_tries: Refusals in one incident that are answered without going further back; the next one gives up.
        relax_steps: Good steps after which the ceiling rises by 5 %, time and again, until it is where the training
            went wrong; then it is gone. After a first incident it doubles instead while it is below half of the rate at
            which the restored state passed its trial; every further incident makes it rise four times as slowly.
        trial_steps: Good losses that make a backup one to trust.
        older_steps: Least steps between the two such backups that are kept.
        replay_check: Whether the first batch after a backup is trained on again when it was restored, and its loss must
            repeat: else it was the memory, the hardware, or training is not deterministic. Takes up to two steps.

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
        """Whether nothing was refused of late, or good losses have followed it."""
        return state.is_sudden and (not state.tries or state.accepted >= FRESH_STEPS)

    def plan(self, state: RecoveryState, *, steps: Collection[int], is_level: bool = False) -> Move:
        """Where the next refusal of an incident takes the model.

        A state that had passed its trial may be tried once more, at a lower rate; from then on it goes strictly back.

        Args:
            state: The state before the refusal.
            steps: When the states that could be restored were taken, in steps reported.
            is_level: Whether it is for a raised level. What makes one creeps up, so that a trial may have been passed
                with it: such a state is tried again only where there is no older one.
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

        The first time an older state is tried the rate is not lowered further: if it helps, it was the weights.

        Args:
            state: The state before.
            steady_limit: Most steady batches to ask for.
            move: What `plan` says.
            step: Steps reported, the refused one included.
            sudden: Whether the loss was not finite, and nothing was suspected before.
            lr: The scheduled learning rate; 0 sets no ceiling.
        """
        # Where the restored state had a good loss, what failed may be the update, and not the state.
        lowers = move is not Move.FURTHER or state.is_deeper or (not sudden and state.accepted > 0)
        lowered = state.lowered + (lowers and state.tries > 0)
        factor = min(self.factors[min(lowered, len(self.factors) - 1)], self.lr_factor(state))
        is_early = not sudden and not state.tries and state.ceiling is None and 0 <= step <= EARLY_STEPS
        if is_early:
            # A loss may be strange for other reasons than the rate, and a ceiling would hold down the whole warm-up.
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
        """The ceiling when a rate went wrong again."""
        ceiling = min(ceiling, now * HARSHER ** _sharpness(state.accepted))
        if move is Move.AGAIN and state.accepted and state.proven_lr:
            # At half of the rate that this state has borne, another failure is not that of the rate.
            ceiling = min(ceiling, state.proven_lr / 2)
        return ceiling

    def blamed(self, state: RecoveryState, step: int, *, again: bool) -> RecoveryState:
        """The state after a loss was refused for a sample in its batch: the weights and the rate are not to blame.

        Args:
            state: The state before.
            step: Steps reported, the refused one included.
            again: Whether the losses refused before are that sample's too. Then the rate is the schedule's at once.
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
        """The state after the model was put back.

        Args:
            state: What `refused` returned.
            step: Steps reported when the restored state was taken.
            distance: Steps of training between it and the first refusal of the incident.
            is_proven: Whether it had passed its trial before.
            proven_lr: At what rate; NaN if that is not known.
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
        """Whether one more refusal comes just when damage in the restored state would show again."""
        return state.tries > 0 and state.restored >= 0 and abs(state.accepted + 1 - state.distance) <= 1

    def is_isolated(self, state: RecoveryState, move: Move, *, sudden: bool) -> bool:
        """Whether one more refusal is an incident of its own, though the trial of the last one is not passed.

        What was wrong with the restored state would have come again after as many good losses as there were steps
        between that state and the refusal. A refusal that comes sooner, after some good losses, is another one; so is
        one after many good losses where there is nothing older to try.

        Args:
            state: The state before the refusal.
            move: What `plan` says.
            sudden: Whether the loss was not finite, and nothing was suspected before.
        """
        distance, accepted = state.distance, state.accepted
        if state.is_unseen or state.restored < 0:
            return False
        if sudden and state.is_sudden and FRESH_STEPS <= accepted < distance - FRESH_STEPS:
            return True
        # How soon a spike or a level is seen differs.
        is_sooner = accepted < distance // 2
        return accepted >= self.heal_steps and (is_sooner or sudden is not state.is_sudden or move is Move.STUCK)

    def closed(self, state: RecoveryState) -> RecoveryState:
        """The state when an incident is over; the rate stays as it is and comes back by and by."""
        return state._replace(**BEFORE_INCIDENT)

    def absolved(self, state: RecoveryState) -> RecoveryState:
        """The state once a sample is known to be the cause: the rate is the schedule's, but for an older ceiling."""
        if state.owns_ceiling or state.ceiling is None:
            return CALM
        return state._replace(**BEFORE_INCIDENT, factor=1.0, steady_left=0)

    def drifted(self, state: RecoveryState, lr: float) -> RecoveryState:
        """The state after the losses have crept up with a learning rate: it stays below half of that for a while."""
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
        """Good losses in a row that end the incident."""
        return max(self.heal_steps if state.is_sudden else self.calm_steps, state.trial)

    def lr_factor(self, state: RecoveryState) -> float:
        """What to multiply the scheduled learning rate by, in (0, 1]."""
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
        """Whether the incident has used up its tries, or too many have followed one another."""
        return max(state.stuck, min(1, state.tries)) > self.max_tries or state.isolated > ISOLATED * self.max_tries


LEAST_LEVEL_STEPS = 176
"""Steps of a run before which a state has no level of the losses of its own: whether they are raised cannot be told."""

EARLY_STEPS = 80
"""Steps of a run within which a first spike does not lower the rate yet; a second one does."""

ISOLATED = 4
"""How many more incidents may follow one another without a passed trial than an incident has tries."""

MOST_IN_A_ROW = 8
"""Refusals in a row that samples may be blamed for, where only some losses of each batch were bad."""

FRESH_STEPS = 4
"""Good losses after a refusal that tell the weights from the batch."""

RELAX = 1.05
"""What a ceiling is multiplied by when it rises."""

SLOWER = 4
"""How much more slowly with every further incident."""

QUICK_STEPS = 32
"""Good losses within which a rate that is far too high goes wrong."""

HARSHER = 0.2
"""What the rate is multiplied by at least when it went wrong again within an incident."""


def _sharpness(accepted: int) -> int:
    """How sharply to lower a rate that went wrong after so many good losses: the sooner, the further off it was."""
    # Not one good loss: the update is not to blame, the state is, or the batch.
    return 3 if 0 < accepted < FRESH_STEPS else 2 if 0 < accepted < QUICK_STEPS else 1


def _capped(state: RecoveryState, ceiling: float, culprit: float) -> RecoveryState:
    """With a ceiling no higher than this; the first of an incident counts."""
    return state._replace(
        ceiling=ceiling if state.ceiling is None else min(ceiling, state.ceiling),
        culprit=max(culprit, state.culprit),
        num_capped=state.num_capped + (state.tries <= 1),
    )


def _relaxed(state: RecoveryState, ceiling: float) -> RecoveryState:
    """With a ceiling that is a little higher, or twice as high as long as such weights have borne that before."""
    is_borne = state.num_capped <= 1 and 2 * ceiling <= (state.proven_lr or 0.0)
    ceiling *= 2 if is_borne else RELAX
    if ceiling >= state.culprit:
        return state._replace(ceiling=None, culprit=0.0, num_capped=0, proven_lr=None)
    return state._replace(ceiling=ceiling)
