"""The state of an incident, from which the recovery policy decides."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Move(enum.Enum):
    """Where a refusal takes the model, compared with the earlier refusals of the incident.

    FIRST: this is the first refusal. AGAIN: to the state restored last. FURTHER: to an older one. STUCK: there is no
    older state, or none at all.
    """

    FIRST = "first"
    AGAIN = "again"
    FURTHER = "further"
    STUCK = "stuck"


class RecoveryState(NamedTuple):
    """The state of an incident.

    Attributes:
        tries: Number of refused losses in this incident; 0 outside one.
        factor: Factor of the scheduled learning rate, as set at the last refusal.
        accepted: Good losses since the last refusal.
        steady_left: Steady batches still to draw.
        ceiling: Highest learning rate allowed; None for no limit.
        culprit: The learning rate that went wrong, up to which the ceiling rises again.
        is_sudden: Whether every refused loss of the incident was not finite.
        num_capped: Incidents that lowered the ceiling since there last was none.
        lowered: Number of times this incident has lowered the rate.
        stuck: Refusals of this incident that took the model no further back, the first one included.
        first: Steps reported at the first refusal; -1 before it.
        restored: Steps reported when the state restored last was taken; -1 if none was restored.
        is_proven: Whether that state had passed its trial before.
        is_again: Whether a state was restored twice.
        is_deeper: Whether a state older than the first one was restored.
        trial: Good losses that the state restored last needs to pass its trial, if more than `Recovery` asks for.
        is_unseen: Whether the damage does not show in losses, so that the weights must be checked at the end.
        owns_ceiling: Whether there was no ceiling before this incident.
        isolated: Incidents in a row that began before the trial of the previous one was over.
        in_a_row: Refusals since the last good loss that were blamed on samples.
        distance: Training steps between the state restored last and the first refusal.
        proven_lr: Learning rate at which that state passed its trial; None if it did not, or if unknown. Kept while
            there is a ceiling.
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
"""The fields that belong to one incident, with their values outside it."""

CALM = RecoveryState()
"""Nothing was refused, and the learning rate follows the schedule."""
