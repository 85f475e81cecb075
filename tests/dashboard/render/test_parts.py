"""Histograms, sparklines and columns of numbers."""

import math

from learnit_r8.dashboard.text import aligned, spark, tower
from learnit_r8.dashboard.theme import ASCII, BRAILLE


def test_histogram_shows_every_count():
    """A bin with a single sample leaves a trace, an empty one none."""
    assert tower([1000, 0, 1], 3, 1, BRAILLE) == ["█ ▁"]
    assert tower([2, 1], 2, 2, ASCII) == ["# ", "##"]


def test_trace_ends_with_the_newest():
    """A trace shows the newest values at its right, and a space where nothing is known."""
    assert spark([9.0, 0.0, math.nan, 1.0], 3, BRAILLE) == "▁ █"


def test_small_numbers_of_a_column_keep_their_digits():
    """A number that would be 0.0000 in its column is written as a power of ten."""
    assert aligned([2.3e-7, 0.5, math.nan], 9) == ["  2.3e-07", "   0.5000", "      nan"]
