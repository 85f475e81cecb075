import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.schedules.range_test import RangeTest

BOWL = [
    2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 2.0, 2.0, 1.9, 1.7, 1.5,
    1.3, 1.2, 1.1, 1.1, 1.2, 1.6, 2.5, 4.0, 9.0, 30.0, 90.0,
]  # fmt: skip


def search(losses, max_steps=50):
    test = RangeTest(max_steps)
    for loss in losses:
        if test.is_done:
            break
        test.take(loss, test.draw(), refused=False)
    return test


@pytest.mark.parametrize(("total", "steps"), [(None, 50), (1, 50), (500, 50), (501, 50), (510, 51), (100_000, 10_000)])
def test_search_is_bounded(total, steps):
    """A search takes at most a tenth of the run's steps, and may take 50."""
    assert RangeTest.for_run(total).max_steps == steps


@pytest.mark.parametrize(("steps", "growth"), [(50, 10 ** (7 / 49)), (8, 10.0), (1000, 1.05)])
def test_rates_span_the_range(steps, growth):
    """The rate grows from 1e-6 by the factor that reaches 10 in the given steps, and by 1.05 at least."""
    test = RangeTest(steps)
    assert test.lr == 1e-6
    test.take(1.0, test.draw(), refused=False)

    assert test.lr == pytest.approx(1e-6 * growth)


def test_flat_loss_finds_nothing():
    """A loss that never turns up ends the search at the last step, without a result."""
    test = search([1.0] * 60)

    assert (test.num_steps, test.is_done) == (50, True)
    assert math.isnan(test.result)


def falling(test, count):
    for number in range(count):
        test.take(2.0 - 0.01 * number, test.draw(), refused=False)


def test_two_refused_losses_end_the_search():
    """Two refused losses in a row end the search with a tenth of the rate at which the smoothed loss was lowest."""
    test = RangeTest(20)
    falling(test, 9)
    assert test.take(float("nan"), test.draw(), refused=True)
    assert not test.take(float("nan"), test.draw(), refused=True)

    assert (test.is_done, test.result) == (True, pytest.approx(0.1 * 1e-6 * test.growth**8))


def test_one_refused_loss_begins_anew():
    """After one refused loss the model is to be put back, and its loss is no longer measured by the lowest before."""
    test = RangeTest(30)
    falling(test, 9)
    assert test.take(float("nan"), test.draw(), refused=True)
    falling(test, 3)

    assert not test.is_done


def test_curve_begins_anew_with_the_model():
    """After a refused loss the model starts over: losses as high as at the start are no turn of the curve."""
    search = RangeTest(200)
    for loss in [2.0] * 8 + np.linspace(2.0, 1.0, 20).tolist() + [1.0] * 20:
        search.take(loss, search.draw(), refused=False)
    assert search.take(9.0, search.draw(), refused=True)
    for _ in range(10):
        search.take(2.0, search.draw(), refused=False)

    assert not search.is_done


def test_search_needs_losses_to_begin_with():
    """Losses refused among the first tell nothing of the rate, and are an error."""
    test = RangeTest(20)
    falling(test, 1)
    test.take(float("nan"), test.draw(), refused=True)

    with pytest.raises(RuntimeError, match="auto_find_lr needs at least 8 good losses to begin with, got 1 in 3 steps"):
        test.take(float("nan"), test.draw(), refused=True)


def test_rising_loss_ends_the_search():
    """A smoothed loss clearly above its lowest value ends the search, with a tenth of the rate of that value."""
    test = RangeTest(50)
    falling(test, 8)
    test.take(9.0, test.draw(), refused=False)

    assert (test.num_steps, test.result) == (9, pytest.approx(0.1 * 1e-6 * test.growth**7))


def test_noise_alone_does_not_end_the_search():
    """Losses as scattered as the first eight, without a trend, search to the end."""
    assert search([1.0, 1.2, 0.8, 1.1, 0.9] * 12).num_steps == 50


@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_result_moves_and_scales_with_the_loss(scale, shift):
    """Another unit or zero point of the loss finds the same rate."""
    assert search([scale * loss + shift for loss in BOWL]).result == search(BOWL).result


def test_bowl_finds_a_rate_below_its_rise():
    """The rate found is below the one with the lowest loss."""
    test = search(BOWL)

    assert test.is_done
    assert test.result < 1e-6 * test.growth ** BOWL.index(min(BOWL))


@pytest.mark.parametrize("stop", range(len(BOWL)))
def test_search_resumes_exactly(stop):
    """A search that went through JSON at any step ends like one that did not."""
    test = RangeTest(50)
    for number, loss in enumerate(BOWL):
        if number == stop:
            test = RangeTest(**json.loads(json.dumps(test.state_dict())))
        if test.is_done:
            break
        test.take(loss, test.draw(), refused=False)

    assert test.state_dict() == search(BOWL).state_dict()
