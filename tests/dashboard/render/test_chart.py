"""Scales of charts, and spikes beyond them."""

import dataclasses

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.dashboard.render.chart import axis, scale_of
from learnit_r8.dashboard.state.curve import Columns
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import BRAILLE
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


@pytest.mark.parametrize("size", [3e-13, 1e-10, 1e-9, 1e-4, 1.0, 1e9, -1e-9, -1.0])
@pytest.mark.parametrize("is_log", [False, True])
def test_losses_of_any_size_have_labels(size, is_log):
    """The axis names at least two values of a curve, different ones, however small or large its losses are."""
    values = size * (2 + np.cos(np.linspace(0, 3, 60)))
    labels = [text.strip() for text in scale_of(Columns(values, values, values), is_log=is_log).labels(8)]
    shown = [float(text) for text in labels if text]

    assert len(set(shown)) == len(shown) >= 2
    assert all(min(values) <= value <= max(values) for value in shown)


def test_checkpoints_leave_the_numbers_of_the_axis_alone():
    """The letter of a checkpoint, which comes every epoch, stands between the numbers."""
    marks = [(step, "C") for step in range(0, 1000, 10)] + [(505, "S")]
    text = "".join(span.text for span in axis(100, 0, 1000, BRAILLE, marks, ("0", "1,000")))

    assert all(f" {number} " in text for number in (200, 400, 600, 800))
    assert text.count("S") == 1
    assert text.count("C") > 30
