"""The head of the screen: totals, time left, rate."""

import math

from learnit_r8 import events
from learnit_r8.dashboard.state.ui_state import Scene
from learnit_r8.dashboard.state.view import View
from tests.screen_common import fake_view, screen


def test_totals_and_time_left_right_after_a_resume():
    """A resumed run shows its step, share and time left before its first step, from the time of before."""
    view = View()
    view.fold(events.RunStarted(5000, 1000.0, "it", 1000, 10, 100, 10_000, None, "balanced"))
    frame = "\n".join(screen(view, 80, 24))

    assert "step 5,000/10,000" in frame
    assert "50.0%" in frame
    assert "left 16:40" in frame


def test_time_left_is_unknown_before_the_first_step():
    """Until a step has been timed, the time left is a question mark, not zero."""
    view = View()
    view.fold(events.RunStarted(0, 0.0, "it", 1000, 10, 100, 10_000, None, "balanced"))

    assert "left ?" in screen(view, 80, 24)[1]


def test_rest_of_a_time_budget_is_the_budget():
    """With a budget in seconds the time left is what is left of it, by the clock."""
    view = View()
    view.fold(events.RunStarted(0, 0.0, "it", 1000, 10, 100, None, 600.0, "balanced"))
    view.fold(events.StepDone(1, 1.0, 0, 1 / 600, 1.0, math.nan, 0.1, 10, False))

    assert "left 8:20" in "\n".join(screen(view, 80, 24, scene=Scene(now=100.0)))


def test_rate_below_the_schedule_shows_its_factor():
    """While recovery holds the rate down, the screen says what the schedule would be and the factor."""
    assert "lr 0.03426 = plan 0.06852 x0.5" in "\n".join(screen(fake_view(), 80, 24))
