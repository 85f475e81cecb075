"""The page of metrics, and that of two runs."""

import math

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.keys import press
from learnit_r8.dashboard.state.ui_state import UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.text import grouped
from tests.dashboard.state.told import start, steps
from tests.screen_common import fake_view, screen


def logged(count, per_metric=8):
    view = View()
    view.fold(start())
    for step in range(1, 101):
        view.fold(steps(step, float(step), loss=1 / step))
    for step in range(10, 10 * per_metric + 1, 10):
        names = {f"metric{number}": number + math.sin(step / 20) for number in range(count)}
        view.fold(events.MetricsLogged(step, float(step), step, names))
    return view


@pytest.mark.parametrize("size", [(80, 24), (60, 16), (120, 40), (200, 60)])
def test_every_metric_can_be_reached(size):
    """However many metrics there are, paging shows the chart of each, whole."""
    view, ui, seen = logged(13), UiState(view="metrics"), ""
    for _ in range(14):
        seen += "\n".join(screen(view, *size, **vars(ui)))
        ui = press("down", ui, view)[0]

    assert all(f"metric{number} " in seen for number in range(13))


def test_training_and_validation_are_in_one_chart():
    """Metrics of one name share a chart; a validation loss alone is drawn over the loss of the batches."""
    frame = "\n".join(screen(fake_view(), 120, 30, view="metrics"))

    assert grouped(["acc", "val_acc", "train/f1", "eval/f1"]) == {
        "acc": ["acc", "val_acc"],
        "f1": ["train/f1", "eval/f1"],
    }
    assert "batches 0.4" in frame
    assert "val_loss 0.4114 best 0.4114 @4,692" in frame
    assert "accuracy 0.8857 best 0.8857 @4,692" in frame


def test_best_is_marked_where_it_was():
    """The best value is named with its step, lower for losses, and marked on the axis; later ones do not move it."""
    view = logged(0)
    for step, value in ((20, 0.5), (40, 0.9), (80, 0.7)):
        view.fold(events.MetricsLogged(step, float(step), step, {"accuracy": value, "val_error": value}))
    frame = screen(view, 120, 30, view="metrics")
    axis = next(line for line in frame if "└" in line)

    assert any("accuracy 0.7 best 0.9 @40" in line for line in frame)
    assert any("val_error 0.7 best 0.5 @20" in line for line in frame)
    assert "●" in axis


def test_best_outlives_thinning_and_not_a_resume():
    """The best value is kept when its point is thinned out, and forgotten by a run that goes on from before it."""
    view = logged(0)
    for step in range(100, 1100):
        view.fold(events.MetricsLogged(step, float(step), step, {"accuracy": 0.99 if step == 333 else 0.5}))
    assert view.bests["accuracy"] == (333, 0.99)
    view.fold(start(step=200, seconds=200.0))

    assert view.bests["accuracy"].value == 0.5


def test_metrics_that_are_not_finite_are_drawn():
    """NaN leaves gaps, and raises nothing; a metric of NaN alone has no best."""
    view = logged(0)
    for step in range(10, 60, 10):
        view.fold(events.MetricsLogged(step, float(step), step, {"a": math.nan, "b": math.nan if step > 30 else 1.0}))

    assert "a" not in view.bests
    assert any("b nan best 1 @10" in line for line in screen(view, 80, 24, view="metrics"))


@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
def test_events_can_be_opened(size):
    """A reason too long for its line can be read in full."""
    view = logged(0)
    reason = "because the loss of this batch was far above what the table expected of it, twice in a row"
    view.fold(events.Notice(101, 101.0, reason, True))
    cut = " ".join(" ".join(screen(view, *size, view="events")).split())
    whole = " ".join(" ".join(screen(view, *size, **vars(press("enter", UiState(view="events"), view)[0]))).split())

    assert reason not in cut
    assert reason in whole


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_every_curve_is_named_at_any_width(width):
    """Where the best values do not fit beside the names, these come first: val_loss has its name at 80 columns, too."""
    frame = "\n".join(screen(fake_view(), width, 24, view="metrics"))

    assert "batches" in frame
    assert "val_loss" in frame
