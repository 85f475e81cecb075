"""Tools for tests of your own training: planned faults, a toy task, a clock set by hand, and a recorder of events.

Nothing here is needed to train. See ``docs/recovery.md`` for a rehearsal of a run that goes wrong.
"""

from .clock import FakeClock as FakeClock
from .faults import FaultPlan as FaultPlan
from .recorder import RecordedEvents as RecordedEvents
from .recorder import record_events as record_events
from .toy import ToyTask as ToyTask
