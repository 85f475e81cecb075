"""Triggers: when to act. A trigger is a question about how far a run is; PAMIQ's schedulers ask one for you.

>>> every(10)(Elapsed(steps=20, last_steps=19))
True
"""

from .schedulers import Scheduler, StepIntervalScheduler, TimeIntervalScheduler
from .trigger import (
    Condition,
    Elapsed,
    ElapsedCounter,
    Trigger,
    after,
    always,
    as_trigger,
    at,
    every,
    never,
    quiet_until,
)

__all__ = [
    "Condition",
    "Elapsed",
    "ElapsedCounter",
    "Scheduler",
    "StepIntervalScheduler",
    "TimeIntervalScheduler",
    "Trigger",
    "after",
    "always",
    "as_trigger",
    "at",
    "every",
    "never",
    "quiet_until",
]
