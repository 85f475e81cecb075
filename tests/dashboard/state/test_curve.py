"""Values over steps in bounded memory."""

import math

import numpy as np
import pytest

from learnit_r8.dashboard.state.curve import Curve, range_of


def test_curve_keeps_a_spike_of_one_step():
    """However many steps a column stands for, its highest value is shown."""
    curve = Curve(64)
    for step in range(1, 20_001):
        value = 99.0 if step == 10_864 else 1.0
        curve.add(step, value, value, value)
    columns = curve.columns(10, 0, 20_000)

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


def test_empty_part_of_a_curve_is_unknown():
    """Columns beyond what was added are NaN."""
    curve = Curve(64)
    curve.add(1, 1.0, 1.0, 1.0)

    assert np.isnan(curve.columns(5, 1000, 2000).mean).all()


def test_range_leaves_out_what_cannot_be_drawn():
    """The range of values takes finite ones only; it is never empty."""
    assert range_of([np.nan, 1.0, np.inf, 3.0]) == (1.0, 3.0)
    assert range_of([]) == (0.0, 1.0)
    assert range_of([4.0, 4.0]) == (2.0, 6.0)


def test_points_are_lines_and_no_stairs():
    """A record of many steps is one point in its middle, a single step one at its place; a gap stays one."""
    curve = Curve()
    for step in (1, 2, 3):
        curve.add(step, float(step), float(step), float(step))
    curve.add(24, 5.0, 4.0, 6.0, 20)
    steps, low, mean, high = curve.points(500)

    assert steps.tolist() == [1, 2, 3, 4, 15]
    assert mean.tolist()[:3] == [1, 2, 3]
    assert np.isnan(mean[3])
    assert (low[4], mean[4], high[4]) == (4.0, 5.0, 6.0)
