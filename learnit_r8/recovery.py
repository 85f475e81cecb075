"""Recovery: what to try after a refused loss, and when to give up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .checks import is_number, whole_number


class TrainingDiverged(RuntimeError):
    """The loss stayed refused after everything that recovery can try.

    Attributes:
        bundle: Path of a JSON file with what was tried and the last losses; None where there is no folder for it.
    """

    bundle: str | None = None


class RecoveryState(NamedTuple):
    """Where an incident stands.

    Attributes:
        tries: Refused losses in this incident; 0 while all is well.
        factor: What the scheduled learning rate was multiplied by at the last refusal.
        accepted: Good losses since the last refusal.
        steady_left: Steady batches still to draw.
        ceiling: Highest learning rate allowed; None for any.
        culprit: The learning rate that went wrong, up to which the ceiling rises again.
        is_sudden: Whether all of the incident were losses that were not finite.
        num_capped: Incidents that lowered the ceiling since there was none.
    """

    tries: int = 0
    factor: float = 1.0
    accepted: int = 0
    steady_left: int = 0
    ceiling: float | None = None
    culprit: float = 0.0
    is_sudden: bool = True
    num_capped: int = 0


CALM = RecoveryState()


@dataclass(frozen=True)
class Recovery:
    """Restore the model, lower the learning rate, train on low-loss data for a while; give up after some tries.

    Attributes:
        factors: Learning-rate factors of the first, second, ... refusal of an incident, each in (0, 1]; the last
            one goes on.
        hold_steps: Good steps for which the factor is kept.
        ramp_steps: Good steps over which it then rises to 1, linearly.
        steady_steps: Batches of low-loss samples after a refusal, at most a quarter of an epoch.
        heal_steps: Good losses in a row that end an incident of losses that were not finite.
        max_tries: Refusals in one incident that are answered; the next one gives up.
        calm_steps: After a spike the lowered rate is a ceiling, whatever the ramp says; after so many good losses it
            begins to rise, and an incident with a spike in it ends. A loss that is not finite out of a clear sky sets
            no ceiling: it is its batch's.
        relax_steps: Good steps after which the ceiling rises by 5 %, time and again, until it is where the training
            went wrong; then it is gone. Every further incident before that makes it rise four times as slowly.
        trial_steps: Good losses that make a backup one to trust.
        older_steps: Least steps between the two such backups that are kept.

    Raises:
        ValueError: an attribute outside its range.

    Source: README of learnit-r8, "Stability & Automated Recovery"; research/reliability.md 1.5 and 1.6.
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

    def __post_init__(self) -> None:
        if (
            not isinstance(self.factors, tuple)
            or not self.factors
            or not all(is_number(f) and 0 < f <= 1 for f in self.factors)
        ):
            raise ValueError(f"factors must be a tuple of numbers in (0, 1], got {self.factors!r}.")
        for name in ("hold_steps", "ramp_steps", "steady_steps", "max_tries", "older_steps"):
            whole_number(name, getattr(self, name), least=0)
        for name in ("heal_steps", "relax_steps", "calm_steps", "trial_steps"):
            whole_number(name, getattr(self, name), least=1)

    def is_clear_sky(self, state: RecoveryState) -> bool:
        """Whether nothing was refused of late, or good losses have followed it."""
        return state.is_sudden and (not state.tries or state.accepted >= FRESH_STEPS)

    def refused(
        self, state: RecoveryState, steady_limit: int, *, partly: bool = False, sudden: bool = True, lr: float = 0.0
    ) -> RecoveryState:
        """The state after one more refused loss.

        Args:
            state: The state before.
            steady_limit: Most steady batches to ask for.
            partly: Whether only some samples of the batch had a bad loss. Then it is the samples and not the weights,
                unless it goes on: neither the rate is lowered nor the refusals of before are counted.
            sudden: Whether the loss was not finite, and nothing was suspected before.
            lr: The scheduled learning rate; 0 sets no ceiling.
        """
        if partly and (state.accepted > 0 or not state.tries):
            return state._replace(tries=1, factor=self.lr_factor(state), accepted=0, steady_left=0)
        factor = min(self.factors[min(state.tries, len(self.factors) - 1)], self.lr_factor(state))
        refused = state._replace(
            tries=state.tries + 1,
            factor=factor,
            accepted=0,
            steady_left=min(self.steady_steps, steady_limit),
            is_sudden=sudden and (state.is_sudden or not state.tries),
        )
        if (sudden and self.is_clear_sky(state)) or not lr:
            return refused
        now = self.lr(state, lr)
        ceiling = factor * lr if refused.is_sudden else min(factor * lr, now * (HARSHER if state.tries else factor))
        return _capped(refused, ceiling, now)

    def drifted(self, state: RecoveryState, lr: float) -> RecoveryState:
        """The state after the losses have crept up with a learning rate: it stays below half of that for a while."""
        return _capped(state._replace(accepted=0), lr / 2, lr)

    def accepted(self, state: RecoveryState) -> RecoveryState:
        """The state after a good loss."""
        accepted = state.accepted + 1
        heal_steps = self.heal_steps if state.is_sudden else self.calm_steps
        state = state._replace(tries=0 if accepted >= heal_steps else state.tries, accepted=accepted)
        if state.ceiling is not None and accepted >= self.calm_steps:
            pause = self.relax_steps * SLOWER ** max(0, state.num_capped - 1)
            state = state if accepted % pause else _relaxed(state, state.ceiling)
        if accepted < self.hold_steps + self.ramp_steps or state.tries or state.ceiling is not None:
            return state
        return CALM

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
        """Whether the incident has used up its tries."""
        return state.tries > self.max_tries


OLDER_TRY, CHECKPOINT_TRY = 3, 4
"""The tries from which on an older backup, and at which a checkpoint, comes first."""

MOST_RAISED = 2
"""Tries in an incident that a raised level may use up: it may as well be the data that have changed."""

FRESH_STEPS = 4
"""Good losses after a refusal that tell the weights from the batch."""

RELAX = 1.05
"""What a ceiling is multiplied by when it rises."""

SLOWER = 4
"""How much more slowly with every further incident."""

HARSHER = 0.2
"""What the rate is multiplied by at least when it went wrong again within an incident."""


def _capped(state: RecoveryState, ceiling: float, culprit: float) -> RecoveryState:
    """With a ceiling no higher than this; the first of an incident counts."""
    return state._replace(
        ceiling=ceiling if state.ceiling is None else min(ceiling, state.ceiling),
        culprit=max(culprit, state.culprit),
        num_capped=state.num_capped + (state.tries <= 1),
    )


def _relaxed(state: RecoveryState, ceiling: float) -> RecoveryState:
    ceiling *= RELAX
    if ceiling >= state.culprit:
        return state._replace(ceiling=None, culprit=0.0, num_capped=0)
    return state._replace(ceiling=ceiling)
