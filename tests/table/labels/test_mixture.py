"""The mixture of two normal distributions, compared with known ones."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.table.labels.suspicion import Humps, find_humps


def drawn(low, high, share, count=4000, spread=0.15, seed=0):
    """Values of two normal distributions, and which belong to the higher one."""
    rng = np.random.default_rng(seed)
    is_high = rng.random(count) < share
    return rng.normal(np.where(is_high, high, low), spread), is_high


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_finds_both(share):
    """The fit recovers means, spreads and shares of two distinct normal distributions."""
    values, _ = drawn(0.4, 1.3, share)
    humps = find_humps(values)

    assert humps.low == pytest.approx(0.4, abs=0.03)
    assert humps.high == pytest.approx(1.3, abs=0.05)
    assert humps.high_share == pytest.approx(share, abs=0.02)
    assert humps.are_apart


@pytest.mark.parametrize("values", [np.zeros(0), np.ones(9)], ids=["none", "all alike"])
def test_equal_values_have_no_components(values):
    """If all values are equal, there is no fit."""
    assert find_humps(values) is None


@pytest.mark.parametrize("shape", ["normal", "exponential", "gamma"])
@pytest.mark.parametrize("seed", range(5))
def test_one_hump_is_not_two(shape, seed):
    """One component, with or without a tail, is not taken for two."""
    rng = np.random.default_rng(seed)
    values = {
        "normal": rng.normal(1, 0.2, 2000),
        "exponential": np.sqrt(rng.exponential(0.3, 2000)),
        "gamma": np.sqrt(rng.gamma(2, 0.2, 2000)),
    }[shape]

    assert not find_humps(values).are_apart


def test_separation_is_ashmans():
    """Ashman's D is the distance of the means over the root mean square of the spreads."""
    assert Humps(0.0, 3.0, 10.0, 4.0, 0.5).separation == pytest.approx(math.sqrt(2) * 10 / 5)


HUMPS = st.builds(
    lambda low, low_spread, gap, high_spread, share: Humps(low, low_spread, low + gap, high_spread, share),
    st.floats(-5, 5), st.floats(0.02, 3), st.floats(0, 10), st.floats(0.02, 3), st.floats(0, 1),
)  # fmt: skip


@given(HUMPS, st.lists(st.floats(-50, 50), min_size=2, max_size=30))
def test_belonging_is_a_probability_that_never_falls(humps, values):
    """For any components, belonging is in [0, 1] and never falls with the value."""
    belonging = humps.belonging(np.sort(np.array(values)))

    assert ((belonging >= 0) & (belonging <= 1)).all()
    assert (np.diff(belonging) >= 0).all()


@given(HUMPS.filter(lambda humps: humps.are_apart), st.floats(0.001, 20))
def test_divide_is_where_the_higher_hump_wins(humps, distance):
    """Values below the divide belong to the lower component, those above it to the higher."""
    below, above = humps.belonging(np.array([humps.divide - distance, humps.divide + distance]))

    assert below <= 0.5 + 1e-6 or humps.divide == -math.inf
    assert above >= 0.5 - 1e-6 or humps.divide == math.inf


@pytest.mark.parametrize(("spreads", "share", "divide"), [((1, 1), 0.5, 2.0), ((3, 0.5), 1e-9, math.inf)])
def test_divide_of_known_humps(spreads, share, divide):
    """Equal components divide in the middle; a narrow and tiny one is more likely nowhere."""
    assert Humps(0.0, spreads[0], 4.0, spreads[1], share).divide == pytest.approx(divide)


def test_belonging_finds_the_drawn():
    """Nearly all values more likely of the higher component were drawn from it."""
    values, is_high = drawn(0.4, 1.3, 0.2)

    assert np.mean((find_humps(values).belonging(values) > 0.5) == is_high) > 0.99
