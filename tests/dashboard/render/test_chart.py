"""Scales of charts, and spikes beyond them."""

import dataclasses

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.dashboard.render.chart import scale_of
from learnit_r8.dashboard.state.curve import Columns
from learnit_r8.dashboard.state.view import View
from tests.screen_common import fake_events, screen


def test_lone_spike_does_not_flatten_the_curve():
    """The scale follows the curve; a column far above its neighbours is left to be marked."""
    low = np.linspace(1.0, 0.5, 60)
    high = low + 0.1
    high[30] = 50.0

    assert scale_of(Columns(low, low + 0.05, high)).top == pytest.approx(1.1)


def test_spike_beyond_the_chart_is_marked():
    """A spike that is left out of the scale is marked in the top row of the chart."""
    view = View()
    for event in fake_events(600):
        if isinstance(event, events.StepDone) and event.step == 400:
            event = dataclasses.replace(event, loss=80.0)
        view.fold(event)
    frame = screen(view, 80, 24)

    assert any("▲" in line for line in frame)


def test_steep_beginning_is_no_spike():
    """A loss that falls fast at first is shown from its top."""
    values = 2.3 * np.exp(-np.arange(80) / 8) + 0.3

    assert scale_of(Columns(values, values, values)).top == pytest.approx(2.6)


def test_log_scale_of_losses_that_may_be_negative_is_linear():
    """Where a logarithm does not exist the scale stays linear."""
    values = np.array([-1.0, 2.0, 3.0])

    assert not scale_of(Columns(values, values, values), is_log=True).is_log
