"""Recovery: what to try after a refused loss, and when to give up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .checks import is_number, whole_number


class TrainingDiverged(RuntimeError):
    """The loss stayed refused after everything that recovery can try."""


class RecoveryState(NamedTuple):
    """Where an incident stands.

    Attributes:
        tries: Refused losses in this incident; 0 while all is well.
        factor: What the scheduled learning rate was multiplied by at the last refusal.
        accepted: Good losses since the last refusal.
        steady_left: Steady batches still to draw.
    """

    tries: int = 0
    factor: float = 1.0
    accepted: int = 0
    steady_left: int = 0


@dataclass(frozen=True)
class Recovery:
    """Restore the model, lower the learning rate, train on low-loss data for a while; give up after some tries.

    Attributes:
        factors: Learning-rate factors of the first, second, ... refusal of an incident, each in (0, 1]; the last
            one goes on.
        hold_steps: Good steps for which the factor is kept.
        ramp_steps: Good steps over which it then rises to 1, linearly.
        steady_steps: Batches of low-loss samples after a refusal, at most a quarter of an epoch.
        heal_steps: Good losses in a row that end an incident.
        max_tries: Refusals in one incident that are answered; the next one gives up.

    Raises:
        ValueError: an attribute outside its range.

    Source: README of learnit-r8, "Stability & Automated Recovery".
    """

    factors: tuple[float, ...] = (0.5, 0.1, 0.02)
    hold_steps: int = 32
    ramp_steps: int = 256
    steady_steps: int = 32
    heal_steps: int = 32
    max_tries: int = 4

    def __post_init__(self) -> None:
        if (
            not isinstance(self.factors, tuple)
            or not self.factors
            or not all(is_number(f) and 0 < f <= 1 for f in self.factors)
        ):
            raise ValueError(f"factors must be a tuple of numbers in (0, 1], got {self.factors!r}.")
        for name in ("hold_steps", "ramp_steps", "steady_steps", "max_tries"):
            whole_number(name, getattr(self, name), least=0)
        whole_number("heal_steps", self.heal_steps, least=1)

    def refused(self, state: RecoveryState, steady_limit: int, *, partly: bool = False) -> RecoveryState:
        """The state after one more refused loss.

        Args:
            state: The state before.
            steady_limit: Most steady batches to ask for.
            partly: Whether only some samples of the batch had a bad loss. Then it is the samples and not the weights,
                unless it goes on: neither the rate is lowered nor the refusals of before are counted.
        """
        if partly and (state.accepted > 0 or not state.tries):
            return RecoveryState(1, self.lr_factor(state), 0, 0)
        factor = min(self.factors[min(state.tries, len(self.factors) - 1)], self.lr_factor(state))
        return RecoveryState(state.tries + 1, factor, 0, min(self.steady_steps, steady_limit))

    def drifted(self, state: RecoveryState) -> RecoveryState:
        """The state after a drift: half the rate, and no more."""
        return state._replace(factor=self.lr_factor(state) / 2, accepted=0)

    def accepted(self, state: RecoveryState) -> RecoveryState:
        """The state after a good loss."""
        accepted = state.accepted + 1
        if accepted >= self.hold_steps + self.ramp_steps and accepted >= self.heal_steps:
            return RecoveryState()
        tries = 0 if accepted >= self.heal_steps else state.tries
        return state._replace(tries=tries, accepted=accepted)

    def lr_factor(self, state: RecoveryState) -> float:
        """What to multiply the scheduled learning rate by, in (0, 1]."""
        ramped = (
            (state.accepted - self.hold_steps) / self.ramp_steps
            if self.ramp_steps
            else float(state.accepted >= self.hold_steps)
        )
        return state.factor + (1 - state.factor) * min(1.0, max(0.0, ramped))

    def gives_up(self, state: RecoveryState) -> bool:
        """Whether the incident has used up its tries."""
        return state.tries > self.max_tries
