from learnit_r8 import events
from learnit_r8.testing import record_events
from tests.drive import make


def test_events_are_recorded_in_order():
    """A recorder keeps every event, and tells them apart by kind."""
    heard = record_events()
    r8 = make(listeners=[heard])
    r8.report(r8.draw(), 1.0)

    assert [type(event).__name__ for event in heard][:1] == ["RunStarted"]
    assert len(heard.of(events.StepDone, events.RunStarted)) == 2
