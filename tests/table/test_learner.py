"""Estimators: how a reported loss updates the estimates of its samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.table.learner import (
    FACTOR_RANGE,
    SHARE_RANGE,
    additive,
    leak_of,
    moving_average,
    offset,
    part_means,
    relative,
)
from learnit_r8.table.table import SampleTable

ONE_PART = np.array([4])


def f32(*values):
    return np.array(values, np.float32)


def f64(*values):
    return np.array(values, np.float64)


@st.composite
def parts(draw, low=-100.0, high=100.0):
    """(values float32[M], sizes int64[P], means float64[P])."""
    sizes = np.array(draw(st.lists(st.integers(1, 6), min_size=1, max_size=8)))
    number = st.floats(low, high, width=32)
    values = draw(st.lists(number, min_size=int(sizes.sum()), max_size=int(sizes.sum())))
    means = draw(st.lists(number, min_size=len(sizes), max_size=len(sizes)))
    return np.array(values, np.float32), sizes, np.array(means, np.float64)


@given(parts())
def test_part_means_against_slow_version(example):
    """Part means are the means of the consecutive parts."""
    values, sizes, _ = example
    slow, start = [], 0
    for size in sizes:
        slow.append(sum(float(value) for value in values[start : start + size]) / size)
        start += size

    np.testing.assert_allclose(part_means(values, sizes), slow, rtol=1e-12, atol=1e-12)


def test_part_means_accumulate_in_double():
    """A small value beside large ones that cancel is not lost."""
    assert part_means(f32(2**30, 1, -(2**30)), np.array([3])).tolist() == [1 / 3]


def test_moving_average_starts_as_plain_mean():
    """Until 1 / count falls below alpha, the average is the mean of all observations."""
    estimate = f32(123)
    for count, observed in enumerate([6.0, 2.0, 1.0, 7.0], start=1):
        estimate = moving_average(estimate, f32(observed), f32(count), alpha=0.25)

    assert estimate.tolist() == [4.0]


def test_moving_average_forgets_with_alpha():
    """Later, a new observation has the weight alpha."""
    assert moving_average(f32(8), f32(4), f32(100), alpha=0.25).tolist() == [7.0]


def test_moving_average_ignores_the_value_of_an_unseen_sample():
    """The first observation replaces any value, even NaN."""
    assert moving_average(f32(np.nan, np.inf), f32(3, 2), f32(1, 1), alpha=0.5).tolist() == [3.0, 2.0]


def test_additive_takes_the_observed_mean_for_new_samples():
    """An unseen sample takes the observed mean, and is not part of the prediction."""
    moved = additive(f32(1, 77, 3, 77), np.array([True, False, True, False]), f64(4), ONE_PART, alpha=0.5)

    assert moved.tolist() == [2.0, 4.0, 4.0, 4.0]


@given(parts(), st.floats(0.01, 1))
def test_additive_moves_the_mean_by_alpha(example, alpha):
    """The mean of a part moves towards the observed one by the share alpha; differences stay."""
    values, sizes, means = example
    moved = additive(values, np.ones(len(values), bool), means, sizes, alpha)
    old = part_means(values, sizes)

    np.testing.assert_allclose(part_means(moved, sizes), old + alpha * (means - old), atol=1e-4)
    np.testing.assert_allclose(
        moved - np.repeat(part_means(moved, sizes), sizes), values - np.repeat(old, sizes), atol=1e-4
    )


def test_relative_by_hand():
    """Shares 1 and 3 predict twice the trend; four times the trend doubles them."""
    assert relative(f32(1, 3), f64(4), f64(1), np.array([2]), leak=0).tolist() == [2.0, 6.0]


def test_relative_divides_by_the_trend():
    """A batch whose loss equals the prediction changes nothing, however far the loss has fallen."""
    assert relative(f32(0.5, 1.5), f64(0.25), f64(0.25), np.array([2]), leak=0).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(("mean", "factor"), [(1e9, FACTOR_RANGE[1]), (1e-9, FACTOR_RANGE[0])])
def test_relative_bounds_one_correction(mean, factor):
    """One unusual batch changes a share at most tenfold."""
    np.testing.assert_allclose(
        relative(f32(1, 1), f64(mean), f64(1), np.array([2]), leak=0), [factor, factor], rtol=1e-6
    )


@pytest.mark.parametrize(("mean", "bound"), [(1e9, SHARE_RANGE[1]), (1e-9, SHARE_RANGE[0])])
def test_relative_bounds_the_shares(mean, bound):
    """After any number of corrections, a share stays in [1e-4, 50]."""
    share = f32(1, 1)
    for _ in range(9):
        share = relative(share, f64(mean), f64(1), np.array([2]), leak=0)

    assert share.tolist() == [np.float32(bound)] * 2


@given(parts(low=0.125, high=8.0), st.floats(0.125, 8.0, width=32))
def test_relative_predicts_what_it_saw(example, trend):
    """After an unbounded correction the shares of a part predict what was observed."""
    share, sizes, means = example
    trends = np.full(len(sizes), trend)
    moved = relative(share, means, trends, sizes, leak=0)
    factor = means / trend / part_means(share, sizes)
    free = (factor > FACTOR_RANGE[0]) & (factor < FACTOR_RANGE[1])
    free &= np.maximum.reduceat(moved, np.cumsum(sizes) - sizes) < SHARE_RANGE[1]

    np.testing.assert_allclose((part_means(moved, sizes) * trend)[free], means[free], rtol=1e-5)


def test_relative_survives_a_trend_of_zero():
    """A trend of zero gives the largest correction, not a division by zero."""
    assert relative(f32(1, 1), f64(1), f64(0), np.array([2]), leak=0).tolist() == [10.0, 10.0]


def test_relative_leaks_towards_the_trend():
    """First every share moves towards 1 by the leak: with a leak of a quarter, shares 5 and 1 become 4 and 1."""
    assert relative(f32(5, 1), f64(5), f64(1), np.array([2]), leak=0.25).tolist() == [8.0, 2.0]


@pytest.mark.parametrize(
    ("part_size", "leak"), [(1, 1 / 1600), (8, 0.005), (12, 0.0075), (32, 0.0075), (10_000, 0.0075)]
)
def test_leak(part_size, leak):
    """Small parts, which are more exact, leak less."""
    assert leak_of(part_size) == leak


def test_offset_by_hand():
    """A part one unit above the trend whose estimates predict half a unit moves up by half a unit."""
    assert offset(f32(0, 1), f64(-1), f64(-2), np.array([2])).tolist() == [0.5, 1.5]


@given(parts())
def test_offset_predicts_what_it_saw(example):
    """After the correction the estimates of a part predict what was observed."""
    values, sizes, means = example
    moved = offset(values, means, np.full(len(sizes), -2.5), sizes)

    np.testing.assert_allclose(part_means(moved, sizes) - 2.5, means, atol=1e-4)


def test_worth_of_estimates():
    """For a batch chosen by its estimates, pure noise is worth nothing, while real differences are."""
    rng, facts = np.random.default_rng(0), np.random.default_rng(1).lognormal(0, 1, 4096)

    def worth(losses):
        table = SampleTable(4096, batch_size=32)
        for _ in range(6):
            table.storage.part_size = 1
            table.learner.learn(np.arange(4096), losses(), None, np.ones(4096))
        return table.learner.worth(table.storage.records.take(np.arange(4096)))

    assert worth(lambda: rng.lognormal(0, 1, 4096)) < 0.1
    assert worth(lambda: facts) > 0.99
    assert 0.3 < worth(lambda: facts * rng.lognormal(0, 0.7, 4096)) < 0.95
