"""Triggers: when to act. A trigger is a question about how far a run is; PAMIQ's schedulers ask one for you.

>>> every(10)(Elapsed(steps=20, last_steps=19))
True
"""

from .elapsed import Elapsed, ElapsedCounter
from .notation import as_trigger
from .quiet import quiet_until
from .schedulers import Scheduler, StepIntervalScheduler, TimeIntervalScheduler
from .trigger import Condition, Trigger, always, never
from .when import after, at, every

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
