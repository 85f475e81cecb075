"""Text that is safe to show, whatever a run says."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.dashboard.text import cell_width, clip, fit, width_of
from learnit_r8.events.text import clean

HOSTILE = st.text(max_size=60) | st.sampled_from(
    [
        "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x1bP1;2|17/ab\x1b\\", "\x9b31m", "\u202eevil",
        "a\u0301\u0301\u0301\u0301\u0301",
        "猫" * 50, "\u200b\u200d\ufeff", "👩‍👩‍👧‍👦", "\r\nline\x00", "\ud800", "x" * 5000, "\U000e0041",
    ]
)  # fmt: skip


def assert_harmless(text):
    assert all(
        unicodedata.category(character)[0] != "C" and unicodedata.category(character) not in ("Zl", "Zp")
        for character in text
    ), repr(text)


@given(HOSTILE)
def test_cleaned_text_is_harmless(text):
    """A cleaned text has no control, formatting, private or unassigned character, and is not too long."""
    cleaned = clean(text, 50)

    assert_harmless(cleaned)
    assert len(cleaned) <= 50


@given(HOSTILE, st.integers(0, 40))
def test_fitted_text_has_the_exact_width(text, width):
    """A fitted text takes exactly the cells it may; a clipped one no more."""
    assert width_of(fit(clean(text), width)) == width
    assert width_of(clip(clean(text), width)) <= width


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\tb\nc", "a b c"),
        ("left\u202eright", "left?right"),
        ("zero\u200bwidth", "zero?width"),
        ("e\u0301\u0301\u0301\u0301", "e\u0301\u0301"),
        ("\x9b2J!", "!"),
        ("plain", "plain"),
    ],
)
def test_what_is_left_of_hostile_text(text, cleaned):
    """Control sequences vanish, other harmful characters become a question mark, white space a space."""
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("character", "cells"), [("a", 1), ("猫", 2), ("\u0301", 0), ("⣿", 1), ("█", 1), ("🙂", 2), ("é", 1)]
)
def test_cells_of_characters(character, cells):
    """Wide characters take two cells and combining marks none."""
    assert cell_width(character) == cells
