"""The speed of a run, and the time it will take."""

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.state.view import View
from tests.dashboard.state.told import start, steps


def test_time_left_uses_this_session_only():
    """After a resume the time left follows the new speed, however long the run took before."""
    view = View()
    view.fold(start(step=500, seconds=5000.0))
    for step in range(501, 540):
        view.fold(steps(step, 5000.0 + (step - 500) * 0.5))

    assert view.pacing.left(461) == pytest.approx(461 * 0.5)


def test_breaks_between_epochs_count_apart():
    """The time of a validation is no step time, but part of the time left."""
    view, seconds = View(), 0.0
    view.fold(start())
    for step in range(1, 31):
        seconds += 1.0
        view.fold(steps(step, seconds))
        if step % 10 == 0:
            view.fold(events.EpochDone(step, seconds, step // 10 - 1, step / 1000, 1.0, 0.1, 100, 10.0))
            seconds += 5.0
    view.fold(steps(31, seconds + 1.0))

    assert view.pacing.seconds_per_step == 1.0
    assert view.pacing.left(20, 2) == pytest.approx(30.0)


def test_shares_of_the_time():
    """Own and data time are told as shares of the time of the steps."""
    view = View()
    view.fold(start())
    for step in range(1, 11):
        view.fold(steps(step, float(step), own_seconds=0.01, data_seconds=0.2))

    assert view.pacing.own_share == pytest.approx(0.01)
    assert view.pacing.data_share == pytest.approx(0.2)
    assert view.pacing.samples_per_second == pytest.approx(10.0)
