"""Tools for tests of your own training: faults, a toy task, a clock, a recorder of events, and whether it resumes.

Nothing here is needed to train. See ``docs/recovery.md`` for a rehearsal of a run that goes wrong.
"""

from .doubles import FakeClock as FakeClock
from .doubles import RecordedEvents as RecordedEvents
from .doubles import record_events as record_events
from .faults import FaultPlan as FaultPlan
from .prove import assert_resumes as assert_resumes
from .toy import ToyTask as ToyTask
