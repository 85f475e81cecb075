"""The state of a run in one word."""

import dataclasses

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.notebook import html_of
from learnit_r8.dashboard.state.run_state import state_of
from learnit_r8.dashboard.state.ui_state import Scene
from learnit_r8.dashboard.state.view import View
from tests.dashboard.state.told import start, steps
from tests.screen_common import fake_events, fake_view, fold_all, screen


@pytest.mark.parametrize(
    ("scene", "mode", "word"),
    [
        (Scene(is_paused=True), "live", "PAUSED"),
        (Scene(is_gone=True), "watch", "DIED"),
        (Scene(clock=1e6), "watch", "STALLED"),
        (Scene(), "live", "RECOVERING"),
    ],
)
def test_state_word(scene, mode, word):
    """The state is one word, of several the worst."""
    view = fake_view()
    view.heard = view.stepped = 1e6 - 100

    assert word in screen(view, 80, 24, scene=scene, mode=mode)[0]


def test_state_word_of_a_run_that_gave_up():
    """A run that ended with TrainingDiverged says so, and a new start of it does not."""
    view = fold_all(View(), fake_events(50))
    view.fold(events.GaveUp(50, 20.0, "all tried"))
    view.fold(events.RunEnded(50, 20.0, finished=False))

    assert "DIVERGED" in screen(view, 80, 24)[0]
    view.fold(events.RunStarted(40, 16.0, "it", 1000, 10, 100, 10_000, None, "balanced"))
    assert "DIVERGED" not in screen(view, 80, 24)[0]


@pytest.mark.parametrize(("finished", "word"), [(True, "FINISHED"), (False, "STOPPED")])
def test_state_word_of_an_ended_run(finished, word):
    """A run that is over says whether its budget was used up."""
    view = fold_all(View(), fake_events(50))
    view.fold(events.RunEnded(50, 20.0, finished))

    assert word in screen(view, 80, 24)[0]


def test_run_whose_steps_are_all_done_trains_no_more():
    """A run that was never closed, as in a notebook, is not called TRAINING at 100 %, in its saved view neither."""
    view = View()
    view.fold(start())
    view.fold(dataclasses.replace(steps(50, 20.0), progress=1.0))

    assert state_of(view)[:2] == ("finished", "not closed yet")
    assert "TRAINING" not in html_of(view, 20.0)
