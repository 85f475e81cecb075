"""The state of an incident: what recovery's policy decides from, and where a refusal takes the model."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Move(enum.Enum):
    """Where a refusal takes the model, compared with the refusals before it in the incident.

    FIRST: it is the first one. AGAIN: back to the state that was restored last. FURTHER: to an older one.
    STUCK: there is no older one, or none at all.
    """

    FIRST = "first"
    AGAIN = "again"
    FURTHER = "further"
    STUCK = "stuck"


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
        lowered: How often the rate was lowered in this incident.
        stuck: Refusals of this incident that took the model no further back than before; the first one is among them.
        first: Steps reported at the first refusal; -1 before one.
        restored: Steps reported when the state that was restored last was taken; -1 while there is none.
        is_proven: Whether that state had passed its trial before.
        is_again: Whether a state was restored twice.
        is_deeper: Whether an older state was restored than the first one.
        trial: Good losses that the state restored last needs to pass its trial, besides those of `Recovery`.
        is_unseen: Whether losses do not show the damage, so that the state must be looked at before the incident ends.
        owns_ceiling: Whether there was no ceiling before this incident.
        isolated: Incidents in a row that began before the trial of the one before was passed.
        in_a_row: Refusals since the last good loss that a sample was blamed for.
        distance: Steps of training between the state that was restored last and the first refusal.
        proven_lr: Learning rate at which that state passed its trial; None if it did not, or if that is not known. It
            is remembered while there is a ceiling.
    """

    tries: int = 0
    factor: float = 1.0
    accepted: int = 0
    steady_left: int = 0
    ceiling: float | None = None
    culprit: float = 0.0
    is_sudden: bool = True
    num_capped: int = 0
    lowered: int = 0
    stuck: int = 0
    first: int = -1
    restored: int = -1
    is_proven: bool = False
    is_again: bool = False
    is_deeper: bool = False
    trial: int = 0
    is_unseen: bool = False
    owns_ceiling: bool = False
    isolated: int = 0
    in_a_row: int = 0
    distance: int = 0
    proven_lr: float | None = None


BEFORE_INCIDENT = {
    name: RecoveryState._field_defaults[name]
    for name in (
        "tries", "lowered", "stuck", "first", "restored", "is_proven", "is_again", "is_deeper", "trial", "is_unseen",
        "owns_ceiling", "isolated", "distance",
    )
}  # fmt: skip
"""The fields of an incident, as they are before one."""

CALM = RecoveryState()
"""Nothing was refused, and the learning rate is the schedule's."""
