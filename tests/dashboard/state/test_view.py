"""The state of a run, folded from its events."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.dashboard.state.view import MOST_ENTRIES, MOST_MARKS, MOST_METRICS, MOST_POINTS, MOST_SURVEYS, View
from learnit_r8.events.codec import to_json
from learnit_r8.events.condenser import Condenser
from learnit_r8.events.text import number
from tests.dashboard.state.told import start, steps
from tests.events.any_events import from_json
from tests.screen_common import PER_EPOCH, SPIKE_STEP, fake_events, screen


def test_memory_does_not_grow_with_the_run():
    """A view of a hundred million steps is no larger than one of a thousand."""
    view = View()
    view.fold(start(total=10**8))
    for number_told in range(1, 6000):
        step = number_told * 17_000
        view.fold(steps(step, float(number_told), num=17_000))
        view.fold(events.MetricsLogged(step, float(number_told), step, {f"m{number_told % 99}": 1.0}))
        view.fold(events.CheckpointSaved(step, float(number_told), "ck.r8", None))

    assert len(view.log) == MOST_ENTRIES
    assert len(view.marks) <= MOST_MARKS
    assert len(view.metrics) == MOST_METRICS
    assert max(map(len, view.metrics.values())) <= MOST_POINTS
    assert len(pickle.dumps(view)) < 1_000_000


def test_flood_of_events_leaves_the_alerts():
    """However many epochs follow, a refusal can still be found among the alerts."""
    view = View()
    view.fold(events.BatchRefused(1, 1.0, 0, 9.0, 0.1, 0.05, 1, (), "spike"))
    for epoch in range(3000):
        view.fold(events.EpochDone(epoch + 2, 2.0, epoch, 0.5, 1.0, 0.1, 100, 10.0))

    assert any("refused" in line for line in screen(view, 80, 24, view="events", alerts_only=True))
    assert not any("refused" in line for line in screen(view, 80, 24, view="events"))


def test_surveys_are_thinned():
    """Old bounds of quartiles are thinned, the newest and the first stay."""
    view = View()
    survey = next(event for event in fake_events(PER_EPOCH) if isinstance(event, events.SamplesSurveyed))
    for step in range(1, 2000):
        view.fold(dataclasses.replace(survey, step=step))

    assert len(view.bounds) <= MOST_SURVEYS
    assert view.bounds[-1].step == 1999
    assert view.bounds[0].step == 1
    assert max(b.step - a.step for a, b in zip(view.bounds, view.bounds[1:], strict=False)) <= 16


def test_replayed_run_looks_like_the_live_one():
    """Events that went through a file give the same view as those heard live, picture for picture."""
    live, replayed = View(), View()
    lines = []
    condenser = Condenser(lambda event: (live.fold(event), lines.append(to_json(event))))
    for event in fake_events(1200):
        condenser(event)
    condenser.flush()
    for line in lines:
        replayed.fold(from_json(line))

    for how in ({}, {"view": "data"}, {"view": "samples"}, {"view": "events"}, {"view": "config"}):
        assert screen(replayed, 120, 40, **how) == screen(live, 120, 40, **how)


def test_smoothed_loss_does_not_depend_on_condensing():
    """Steps of one loss smooth alike one by one and together."""
    one, many = View(), View()
    for step in range(1, 21):
        one.fold(steps(step, float(step), loss=1.0 if step == 1 else 2.0))
    many.fold(steps(1, 1.0, loss=1.0))
    many.fold(steps(20, 20.0, loss=2.0, num=19))

    assert many.ema == pytest.approx(one.ema)


def test_incident_begins_and_ends():
    """A refusal is an incident until it is told to have ended; the rate is lowered until it is restored."""
    view = View()
    for event in fake_events(SPIKE_STEP + 500):
        view.fold(event)
        if event.step == SPIKE_STEP + 50:
            assert view.incident is not None
            assert view.is_lr_lowered

    assert view.incident is None
    assert not view.is_lr_lowered


def test_resumed_run_forgets_what_it_will_do_again():
    """A second start at an earlier step cuts the curves there, and goes on from its step."""
    view = View()
    view.fold(start())
    for step in range(1, 101):
        view.fold(steps(step, float(step), loss=float(step)))
    view.fold(start(step=40, seconds=40.0))
    view.fold(steps(41, 41.0, loss=7.0))

    assert np.nanmax(view.loss.columns(100, 0, 100).high) == 40.0
    assert view.step == 41
    assert any(mark.mark == "R" for mark in view.marks)


def test_run_begun_anew_in_a_folder_forgets_the_one_before():
    """What an earlier run in the same folder reached is not shown as this one's."""
    view = View()
    view.fold(start())
    view.fold(steps(1, 1.0, loss=0.5))
    view.fold(events.MetricsLogged(1, 1.0, 1, {"accuracy": 0.9}))
    view.fold(events.EpochDone(1, 1.0, 0, 0.1, 0.5, 0.1, 100, 1.0))
    view.fold(events.BatchRefused(2, 2.0, 0, math.nan, 0.1, 0.1, 1, (), "not finite"))
    view.fold(start())
    view.fold(steps(1, 1.0, loss=7.0))

    assert (view.ema, view.best.value) == (7.0, 7.0)
    assert (view.metrics, view.epoch_began, view.num_refused) == ({}, 0, 0)


def test_resumed_run_keeps_what_was_before_it():
    """The best loss and the metrics are those up to the step that a run was resumed at."""
    view = View()
    view.fold(start())
    for step, loss in ((10, 5.0), (90, 0.1)):
        view.fold(steps(step, float(step), loss=loss))
        view.fold(events.MetricsLogged(step, float(step), step, {"accuracy": loss}))
    view.fold(start(step=40, seconds=40.0))

    assert [point.step for point in view.metrics["accuracy"]] == [10]
    assert view.loss.last_step <= 40
    assert (view.best, view.last) == (None, None)


def test_numbers_are_short():
    """Numbers of any size take at most ten cells."""
    values = [0.0, -1.5, 1e-300, -1e300, 123456.789, 999999.5, 1e6, 0.00012345, math.inf, -math.inf, math.nan]

    assert max(len(number(value)) for value in values) <= 10


def test_rate_that_only_follows_its_schedule_is_not_lowered():
    """A refusal that leaves the rate alone is over when its incident is: the schedule's own steps are no recovery."""
    view = View()
    told = {"epoch": 1, "loss": 1.0, "tries": 1, "samples": (), "reason": "not finite"}
    view.fold(events.BatchRefused(step=9, seconds=1.0, lr=0.0393, next_lr=0.0392, **told))

    assert not view.is_lr_lowered

    view.fold(events.BatchRefused(step=9, seconds=1.0, lr=0.0393, next_lr=0.0196, **told))

    assert view.is_lr_lowered


def test_easy_batches_set_no_best_loss():
    """Batches of easy samples after an incident lower neither the smoothed loss nor the best one."""
    view = View()
    view.fold(start())
    view.fold(steps(1, 1.0, loss=0.33))
    for step in range(2, 200):
        view.fold(steps(step, float(step), loss=0.1, num_steady=1))

    assert (view.ema, view.best.value) == (0.33, 0.33)
    assert view.loss.columns(199, 0, 199).mean[-1] == pytest.approx(0.1)


def test_pause_is_no_warning():
    """Somebody who pauses a run is not warned of it."""
    view = View()
    view.fold(start())
    view.fold(events.RunPaused(1, 1.0, "requested on the screen"))
    view.fold(events.RunResumed(1, 1.0))

    assert view.num_alerts == 0
    assert view.num_entries == 3
