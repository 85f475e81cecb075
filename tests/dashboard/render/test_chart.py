"""Scales of charts, and spikes beyond them."""

import dataclasses
import math

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.dashboard.render.chart import axis, scale_of
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.state.curve import Columns
from learnit_r8.dashboard.state.ui_state import Scene, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import BRAILLE
from tests.dashboard.state.told import start, steps
from tests.screen_common import fake_events, fake_view, screen


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
    """A checkpoint, which comes every epoch, is a tick between the numbers, and hides no refusal."""
    marks = [(step, "C") for step in range(0, 1000, 10)] + [(505, "S")]
    text = "".join(span.text for span in axis(100, 0, 1000, BRAILLE, marks, ("0", "1,000")))

    assert all(f" {number} " in text for number in (200, 400, 600, 800))
    assert text.count("S") == 1
    assert text.count(BRAILLE.tick) > 30
    assert "C" not in text


def test_loss_panel_names_its_marks_and_fits_the_last_steps():
    """Every mark on the axis is in the legend; a high start does not flatten the rest, and a key shows all of it."""
    view = View()
    view.fold(start(total=400))
    for step in range(1, 401):
        view.fold(steps(step, float(step), 100.0 if step < 20 else 1.0 + step / 400))
        if step % 10 == 0:
            view.fold(events.CheckpointSaved(step, float(step), "ck", None))
    view.fold(events.BatchRefused(400, 400.0, 1, math.nan, 0.1, 0.1, 1, (), "not finite"))
    lines = screen(view, 120, 30)
    whole = screen(view, 120, 30, zoom="whole range")

    (title,) = (line for line in lines if "checkpoint" in line and "saved" not in line)
    assert "S refused" in title
    assert f"{BRAILLE.tick} checkpoint" in title
    assert any(line.rstrip("│").strip().endswith("S") or "S" in line for line in lines if "└" in line)
    assert not any(line.lstrip().startswith("100") for line in lines)
    assert any(line.lstrip().startswith("100") for line in whole)


def test_last_incident_stays_a_minute():
    """Its sentence is on the overview as long as it lasts and a minute longer."""
    view = View()
    for event in (
        start(), steps(1, 1.0), events.BatchRefused(2, 2.0, 0, math.nan, 0.1, 0.1, 1, (), "not finite"),
        events.IncidentEnded(3, 3.0, "the batch was to blame"),
    ):  # fmt: skip
        view.fold(event)

    said = " step 2: loss nan: not finite; the batch was to blame"
    assert said in [line.rstrip() for line in render_at(view, 60.0)]
    assert said not in [line.rstrip() for line in render_at(view, 64.0)]


def render_at(view, now):
    scene = Scene(now=now)
    return ["".join(span.text for span in line) for line in render(view, UiState(), 80, 24, scene=scene)]


def test_validation_stands_beside_the_loss_from_80_columns_on():
    """At 80x24 the validation metric has a chart beside the losses, with its newest and its best value; one bar."""
    view = fake_view()
    lines = screen(view, 80, 24)

    (title,) = (line for line in lines if "─ loss " in line)
    assert "val_loss" in title
    assert sum("█" in line or "░" in line for line in lines if line.startswith((" total", " epoch"))) == 1
    assert not any(line.startswith(" Q1") for line in lines)
    assert any(line.startswith(" Q1") for line in screen(view, 80, 24, view="data"))
