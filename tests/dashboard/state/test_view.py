import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.dashboard.event_text import describe
from learnit_r8.dashboard.render.curves import loss_columns
from learnit_r8.dashboard.state.curve import Curve
from learnit_r8.dashboard.state.view import MOST_ENTRIES, MOST_MARKS, MOST_METRICS, MOST_POINTS, MOST_SURVEYS, View
from learnit_r8.dashboard.text import number
from learnit_r8.events.codec import from_json, to_json
from learnit_r8.events.condenser import Condenser
from tests.screen_common import PER_EPOCH, SPIKE_STEP, fake_events, fake_view, fold_all, screen


def start(step=0, seconds=0.0, total=1000, **more):
    return events.RunStarted(step, seconds, "it", 100, 10, 10, total, None, "balanced", **more)


def steps(step, seconds, loss=1.0, num=1, **more):
    event = events.StepsDone(step, seconds, num, 0, step / 1000, loss, loss, loss, loss, 1.0, 0.1, 10 * num, 0)
    return dataclasses.replace(event, **more)


def test_curve_keeps_a_spike_of_one_step():
    """However many steps a column stands for, its highest value is shown."""
    curve = Curve(64)
    for step in range(1, 100_001):
        value = 99.0 if step == 54_321 else 1.0
        curve.add(step, value, value, value)
    columns = curve.columns(10, 0, 100_000)

    assert np.flatnonzero(columns.high == 99.0).tolist() == [5]
    assert columns.mean[0] == 1.0


@pytest.mark.parametrize("num_steps", [10, 64, 65, 1000])
@pytest.mark.parametrize("num", [1, 7, 64, 200])
def test_curve_equals_the_values(num_steps, num):
    """Every column lies between the lowest and highest of the values, and together they reach both."""
    rng = np.random.default_rng(0)
    values = rng.random(num_steps)
    curve = Curve(64)
    for step, value in enumerate(values.tolist(), start=1):
        curve.add(step, value, value, value)
    columns = curve.columns(num, 0, num_steps)

    assert np.nanmin(columns.low) == values.min()
    assert np.nanmax(columns.high) == values.max()
    assert (columns.low <= columns.mean + 1e-12).all()
    assert (columns.mean <= columns.high + 1e-12).all()


def test_condensed_steps_leave_no_gap():
    """Steps that were told as one fill all the columns they took."""
    curve = Curve(64)
    for step in (1, 9, 30, 40):
        curve.add(step, 2.0, 1.0, 3.0, step - curve.last_step)

    assert curve.columns(40, 0, 40).mean.tolist() == [2.0] * 40


def test_curve_forgets_what_a_resume_undid():
    """After a cut, later steps are gone and may come again."""
    curve = Curve(64)
    for step in range(1, 41):
        curve.add(step, float(step), float(step), float(step))
    curve.cut(10)

    assert np.nanmax(curve.columns(40, 0, 40).high) == 10.0
    assert curve.last_step == 10


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.7e308])
def test_curve_leaves_out_what_is_not_finite(value):
    """A value that is not finite is no part of a curve."""
    curve = Curve(64)
    curve.add(1, value, value, value)

    assert curve.is_empty


def test_rows_of_a_curve_are_its_stretches():
    """A curve as numbers has a row for each stretch that is known, with the last step it stands for."""
    curve = Curve(4)
    for step in range(1, 7):
        curve.add(step, float(step), float(step), float(step))

    assert list(curve.rows()) == [(2, 1.0, 1.5, 2.0), (4, 3.0, 3.5, 4.0), (6, 5.0, 5.5, 6.0)]


def test_zoom_shows_single_steps():
    """The last epoch of a long run is drawn from the newest records, step by step."""
    view = View()
    view.fold(start(total=100_000))
    for step in range(1, 5001):
        view.fold(steps(step, float(step), loss=float(step % 10)))
    columns = loss_columns(view, 20, 4980, 5000)

    assert columns.mean.tolist() == [float(step % 10) for step in range(4981, 5001)]
    assert loss_columns(view, 5, 4980, 5000).high.tolist() == [4.0, 8.0, 9.0, 6.0, 9.0]


def test_empty_part_of_a_curve_is_unknown():
    """Columns beyond what was added are NaN."""
    curve = Curve(64)
    curve.add(1, 1.0, 1.0, 1.0)

    assert np.isnan(curve.columns(5, 1000, 2000).mean).all()


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


def test_frozen_picture_stays():
    """A copy of a view does not change with it."""
    view = fold_all(View(), fake_events(500))
    frozen = copy.deepcopy(view)
    before = screen(frozen, 80, 24)
    fold_all(view, [steps(501, 200.0, loss=9.0)])

    assert screen(frozen, 80, 24) == before
    assert screen(view, 80, 24) != before


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
    assert (view.metrics, view.logged, list(view.epochs), view.num_refused) == ({}, None, [], 0)
    assert len(view.recent) == 1


def test_resumed_run_keeps_what_was_before_it():
    """The best loss and the metrics are those up to the step that a run was resumed at."""
    view = View()
    view.fold(start())
    for step, loss in ((10, 5.0), (90, 0.1)):
        view.fold(steps(step, float(step), loss=loss))
        view.fold(events.MetricsLogged(step, float(step), step, {"accuracy": loss}))
    view.fold(start(step=40, seconds=40.0))

    assert [point.step for point in view.metrics["accuracy"]] == [10]
    assert [each.step for each in view.recent] == [10]
    assert view.best is None


def test_time_left_uses_this_session_only():
    """After a resume the time left follows the new speed, however long the run took before."""
    view = View()
    view.fold(start(step=500, seconds=5000.0))
    for step in range(501, 540):
        view.fold(steps(step, 5000.0 + (step - 500) * 0.5))

    assert view.pacing.left(461).seconds == pytest.approx(461 * 0.5)


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
    assert view.pacing.left(20, 2).seconds == pytest.approx(30.0)


def test_shares_of_the_time():
    """Own and data time are told as shares of the time of the steps."""
    view = View()
    view.fold(start())
    for step in range(1, 11):
        view.fold(steps(step, float(step), own_seconds=0.01, data_seconds=0.2))

    assert view.pacing.own_share == pytest.approx(0.01)
    assert view.pacing.data_share == pytest.approx(0.2)
    assert view.pacing.samples_per_second == pytest.approx(10.0)


@pytest.mark.parametrize("kind", events.EVENTS.values())
def test_every_event_can_be_described(kind):
    """Every kind of event has a sentence, or is one of those that only carry numbers."""
    values = {
        "int": 1, "int | None": 1, "float": 1.0, "float | None": 1.0, "str": "text", "str | None": "text",
        "bool": True, "dict[str, float]": {"a": 1.0}, "dict[str, str]": {"a": "b"},
    }  # fmt: skip
    said = describe(kind(**{field.name: values.get(field.type, ()) for field in dataclasses.fields(kind)}))

    silent = {"StepDone", "StepsDone", "SamplesSurveyed", "BackupTaken", "LrPlanned", "Alive"}
    assert (said is None) == (kind.__name__ in silent)


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


def test_numbers_are_short():
    """Numbers of any size take at most ten cells."""
    values = [0.0, -1.5, 1e-300, -1e300, 123456.789, 999999.5, 1e6, 0.00012345, math.inf, -math.inf, math.nan]

    assert max(len(number(value)) for value in values) <= 10


def test_made_up_run_is_the_same_every_time():
    """The run of the tests of the screen does not depend on when it is made."""
    assert screen(fold_all(View(), fake_events(4812)), 80, 24) == screen(fake_view(), 80, 24)


def test_rate_that_only_follows_its_schedule_is_not_lowered():
    """A refusal that leaves the rate alone is over when its incident is: the schedule's own steps are no recovery."""
    view = View()
    told = {"epoch": 1, "loss": 1.0, "tries": 1, "samples": (), "reason": "not finite"}
    view.fold(events.BatchRefused(step=9, seconds=1.0, lr=0.0393, next_lr=0.0392, **told))

    assert not view.is_lr_lowered

    view.fold(events.BatchRefused(step=9, seconds=1.0, lr=0.0393, next_lr=0.0196, **told))

    assert view.is_lr_lowered
