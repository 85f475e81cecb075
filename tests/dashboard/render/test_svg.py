"""Axes and shapes of charts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.dashboard.render.svg import Axis, frame, line, range_of, sparkline
from tests.drive import INF, NAN


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.booleans())
def test_ticks_are_few_round_and_inside(low, size, log):
    """The values at an axis lie on it and are not too many."""
    if log:
        low = abs(low) + 1e-9
    high = low + max(size, abs(low) * 1e-6)
    ticks = Axis(low, high, 0, 500, log).ticks(6)

    assert len(ticks) <= 14
    assert all(low - 1e-6 * (high - low) <= tick <= high + 1e-6 * (high - low) for tick in ticks)


def test_axis_places_values():
    """Values are placed evenly, or by their logarithms; those beyond are put at the ends."""
    assert Axis(0, 10, 100, 200).place([0, 5, 10, 99, -9]).tolist() == [100, 150, 200, 200, 100]
    assert Axis(1, 100, 0, 2, log=True).place([1, 10, 100, 0]).tolist() == pytest.approx([0, 1, 2, 0])


def test_range_leaves_out_what_cannot_be_drawn():
    """The range of values takes finite ones only, of a log scale positive ones; it is never empty."""
    assert range_of([NAN, 1.0, INF, 3.0]) == (1.0, 3.0)
    assert range_of([-1.0, 0.0, 2.0, 8.0], log=True) == (2.0, 8.0)
    assert range_of([]) == (0.0, 1.0)
    assert range_of([NAN], log=True) == (0.1, 1.0)
    assert range_of([4.0, 4.0]) == (2.0, 6.0)
    assert range_of([4.0], log=True) == (2.0, 8.0)


def test_line_leaves_out_what_is_unknown():
    """A curve goes over a gap."""
    chart = frame(100, 100, (0, 2), (0, 2))

    assert line(chart, [0, 1, 2], [0.0, math.nan, 2.0], "mean").count(",") == 2
    assert sparkline([math.nan, 1.0]) == ""
