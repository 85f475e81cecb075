"""Events as text for people."""

import dataclasses

from hypothesis import given

from learnit_r8 import events
from learnit_r8.dashboard.state.view import View
from learnit_r8.events.event import describe
from tests.events.any_events import any_event

SILENT = {
    "StepDone",
    "StepsDone",
    "SamplesSurveyed",
    "BackupTaken",
    "BestSaved",
    "GroupsMeasured",
    "LrPlanned",
    "Alive",
}


@given(any_event())
def test_every_event_can_be_described(event):
    """Every kind of event has a sentence, or is one of those that only carry numbers."""
    assert (describe(event) is None) == (type(event).__name__ in SILENT)


def test_event_of_a_later_version_is_shown():
    """An event of a kind that is not known here is shown by its name and its fields."""

    @dataclasses.dataclass(frozen=True)
    class ReactorFailed(events.Event):
        heat: float

    view = View()
    view.fold(ReactorFailed(3, 1.0, 99.5))

    assert view.log[-1].text == "reactor failed: heat 99.5"
    assert view.log[-1].level == "warn"


def test_hostile_names_are_cleaned_when_folded():
    """Names of metrics and texts of notices hold no control sequence once they are in the view."""
    view = View()
    view.fold(events.MetricsLogged(1, 1.0, 1, {"\x1b[2Jacc": 0.5}))
    view.fold(events.Notice(1, 1.0, "look\x1b]0;owned\x07 here", is_warning=True))

    assert list(view.metrics) == ["acc"]
    assert view.log[-1].text == "look here"
