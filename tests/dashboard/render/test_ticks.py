"""Round values on the axes of charts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.dashboard.render.chart import LABEL, STEPS, Scale, round_ticks, tick_texts


@given(low=st.floats(-1e5, 1e5), size=st.floats(1e-3, 1e6), most=st.integers(2, 12), is_log=st.booleans())
def test_ticks_are_round_and_apart(low, size, most, is_log):
    """Ticks lie within the axis, are about as many as wanted, and their distance is 1, 2 or 5 times a power of ten."""
    high = low + size
    ticks = round_ticks(low, high, most, is_log=is_log)

    assert len(ticks) <= most + 1
    assert all(low - 0.01 * size <= tick <= high + 0.01 * size for tick in ticks)
    if not (is_log and low > 0):
        assert len(ticks) >= 2
        step = ticks[1] - ticks[0]
        leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert any(leading == pytest.approx(factor, rel=1e-3) for factor in (*STEPS, 10))


@given(low=st.floats(0, 100), size=st.floats(1e-5, 1e6), rows=st.integers(3, 40), is_log=st.booleans())
def test_no_label_repeats_or_mixes_notations(low, size, rows, is_log):
    """All labels of an axis are different and written in one way, whatever the values."""
    scale = Scale(low + 1e-9, low + 1e-9 + size, is_log)
    texts = [text.strip() for text in scale.labels(rows) if text.strip()]
    numbers = [text for text in texts if text != "0"]

    assert len(set(texts)) == len(texts)
    assert len({"e" in text for text in numbers}) <= 1
    assert len({len(text.partition(".")[2].partition("e")[0]) for text in numbers}) <= 1
    assert all(len(text) <= LABEL - 2 for text in texts)


def test_small_rates_are_powers():
    """Rates too small for decimals are powers of ten, all of them."""
    assert tick_texts(round_ticks(0, 5e-5, 5)) == ["0", "2e-5", "4e-5"]


@pytest.mark.parametrize("ends", [(1.0, 1.0), (math.nan, 1.0), (0.0, math.inf), (2.0, 1.0)])
def test_axis_without_a_length_has_no_ticks(ends):
    """Damaged ends of an axis give no ticks and no error."""
    assert round_ticks(*ends, 5) == []
