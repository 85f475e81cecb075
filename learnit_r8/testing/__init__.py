"""Tools for tests of your own training: faults, a toy task, a clock, a recorder of events, and whether it resumes.

Nothing here is needed to train. See ``docs/recovery.md`` for a rehearsal of a run that goes wrong.
"""

from .clock import FakeClock as FakeClock
from .faults import FaultPlan as FaultPlan
from .prove import assert_resumes as assert_resumes
from .recorder import RecordedEvents as RecordedEvents
from .recorder import record_events as record_events
from .toy import ToyTask as ToyTask
