"""Rules of drawing that hold for any run, any size and wherever a person looks."""

import dataclasses
import math
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.dashboard.keys import TABLE, press
from learnit_r8.dashboard.render.chart import scale_of
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.render.pages import VIEWS
from learnit_r8.dashboard.render.parts import aligned, counts, spark, tower
from learnit_r8.dashboard.state.curve import Columns
from learnit_r8.dashboard.state.ui_state import LISTS, MODES, ZOOMS, Scene, UiState
from learnit_r8.dashboard.state.view import Point, View
from learnit_r8.dashboard.text import cell_width, clean, clip, fit, width_of
from learnit_r8.dashboard.theme import ASCII, BRAILLE, NAMES, choose_theme
from tests.screen_common import SCENE, fake_events, fake_view, fold_all, screen

HOSTILE = st.text(max_size=60) | st.sampled_from(
    [
        "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x1bP1;2|17/ab\x1b\\", "\x9b31m", "\u202eevil",
        "a\u0301\u0301\u0301\u0301\u0301",
        "猫" * 50, "\u200b\u200d\ufeff", "👩‍👩‍👧‍👦", "\r\nline\x00", "\ud800", "x" * 5000, "\U000e0041",
    ]
)  # fmt: skip
NUMBERS = st.floats() | st.floats(0, 10)
STEPS = st.integers(0, 10**12) | st.integers(0, 100)
KINDS = {
    "int": STEPS,
    "int | None": st.none() | STEPS,
    "float": NUMBERS,
    "float | None": st.none() | NUMBERS,
    "str": HOSTILE,
    "str | None": st.none() | HOSTILE,
    "bool": st.booleans(),
    "tuple[int, ...]": st.lists(st.integers(0, 2**40), max_size=6).map(tuple),
    "tuple[float, ...]": (st.lists(NUMBERS, max_size=17) | st.lists(NUMBERS, min_size=4, max_size=4)).map(tuple),
    "tuple[bool, ...]": st.lists(st.booleans(), max_size=5).map(tuple),
    "tuple[str, ...]": st.lists(HOSTILE, max_size=5).map(tuple),
    "tuple[tuple[float, ...], ...]": st.lists(st.lists(NUMBERS, max_size=5).map(tuple), max_size=4).map(tuple),
    "dict[str, float]": st.dictionaries(HOSTILE, NUMBERS, max_size=4),
    "dict[str, str]": st.dictionaries(HOSTILE, HOSTILE, max_size=4),
}  # fmt: skip

ANY_EVENT = st.sampled_from(sorted(events.EVENTS)).flatmap(
    lambda name: st.builds(
        events.EVENTS[name], **{field.name: KINDS[field.type] for field in dataclasses.fields(events.EVENTS[name])}
    )
)
ANY_UI = st.builds(
    UiState,
    mode=st.sampled_from(MODES),
    view=st.sampled_from(VIEWS),
    scroll=st.integers(0, 10**6),
    selected=st.integers(0, 1000),
    listed=st.sampled_from(LISTS),
    inspected=st.none() | st.integers(0, 2**40),
    filter=st.text(max_size=3),
    typing=st.none() | HOSTILE,
    zoom=st.sampled_from(ZOOMS),
    log_scale=st.booleans(),
    alerts_only=st.booleans(),
    frozen=st.booleans(),
    help=st.booleans(),
    menu=st.booleans(),
)
ANY_SCENE = st.builds(
    Scene,
    now=st.none() | NUMBERS,
    output=st.lists(HOSTILE, max_size=5).map(tuple),
    num_output=STEPS,
    num_unread=STEPS,
    ui_share=NUMBERS,
    said=HOSTILE,
    link=st.sampled_from(["", "running", "stalled 45 s", "died", "finished"]) | HOSTILE,
    is_paused=st.booleans(),
    folder=HOSTILE,
    speed=NUMBERS,
)
THEMES = [
    choose_theme({"TERM": "xterm-256color"}, glyphs=glyphs, name=name)
    for glyphs in ("braille", "blocks", "ascii")
    for name in NAMES
]
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 100)) | st.tuples(st.integers(1, 90), st.integers(1, 30))
# Shrinking runs as large as these takes gigabytes.
MANY = settings(
    phases=[Phase.explicit, Phase.generate], deadline=None, max_examples=300, suppress_health_check=list(HealthCheck)
)


def check(lines, width, height, theme):
    """What every screen must be."""
    assert len(lines) == height
    for line in lines:
        assert sum(width_of(text) for text, _ in line) <= width
        for text, style in line:
            assert style in theme.styles
            assert_harmless(text)


def assert_harmless(text):
    assert all(
        unicodedata.category(character)[0] != "C" and unicodedata.category(character) not in ("Zl", "Zp")
        for character in text
    ), repr(text)


@MANY
@given(st.lists(ANY_EVENT, max_size=12), ANY_UI, SIZES, st.sampled_from(THEMES), ANY_SCENE)
def test_anything_can_be_drawn(told, ui, size, theme, scene):
    """Any events in any order with any text give the asked number of lines, none too wide, nothing harmful."""
    view = View()
    for event in told:
        view.fold(event)
    check(render(view, ui, *size, theme, scene), *size, theme)


@MANY
@given(ANY_UI, SIZES, st.sampled_from(THEMES), st.sampled_from([300, 1000, 4812]))
def test_a_real_run_can_be_drawn_at_any_size(ui, size, theme, steps):
    """A run as it happens fits screens of every size, wherever the person looks."""
    check(render(fake_view(steps), ui, *size, theme, SCENE), *size, theme)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([key for binding in TABLE for key in binding.keys] + list("abc")), max_size=30))
def test_any_keys_can_be_pressed(keys):
    """No sequence of keys leads to a screen that cannot be drawn."""
    ui, view = UiState(), fake_view()
    for key in keys:
        ui, _ = press(key, ui, view)
    check(render(view, ui, 80, 24, THEMES[0], SCENE), 80, 24, THEMES[0])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (1, 9), (29, 5), (30, 6), (31, 7), (300, 100)])
def test_edges_of_the_layouts(width, height):
    """The smallest screens, those where the layout changes, and the largest are drawn."""
    check(render(fake_view(), UiState(), width, height, THEMES[0], SCENE), width, height, THEMES[0])


def test_render_cleans_text_that_a_panel_did_not():
    """Text that a panel did not clean is cleaned in the lines of the frame."""
    view = View()
    view.fold(events.RunStarted(0, 0.0, "it", 1, 1, 1, 1, None, "balanced"))
    view.metrics["\x1b[2Jowned"] = [Point(1, 0.5)]
    view.fold(events.BatchRefused(1, 1.0, 0, 9.0, 0.1, 0.05, 1, (), "a\x07b\u202ec"))

    check(render(view, UiState(), 120, 40, THEMES[0], SCENE), 120, 40, THEMES[0])


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


def test_lone_spike_does_not_flatten_the_curve():
    """The scale follows the curve; a column far above its neighbours is left to be marked."""
    low = np.linspace(1.0, 0.5, 60)
    high = low + 0.1
    high[30] = 50.0

    assert scale_of(Columns(low, low + 0.05, high)).top == pytest.approx(1.1)


def test_spike_beyond_the_chart_is_marked():
    """A spike that is left out of the scale is marked in the top row of the chart."""
    view = View()
    for event in fake_events(600):
        if isinstance(event, events.StepDone) and event.step == 400:
            event = dataclasses.replace(event, loss=80.0)
        view.fold(event)
    frame = screen(view, 80, 24)

    assert any("▲" in line for line in frame)


def test_steep_beginning_is_no_spike():
    """A loss that falls fast at first is shown from its top."""
    values = 2.3 * np.exp(-np.arange(80) / 8) + 0.3

    assert scale_of(Columns(values, values, values)).top == pytest.approx(2.6)


def test_log_scale_of_losses_that_may_be_negative_is_linear():
    """Where a logarithm does not exist the scale stays linear."""
    values = np.array([-1.0, 2.0, 3.0])

    assert not scale_of(Columns(values, values, values), is_log=True).is_log


def test_rough_values_are_called_rough():
    """Values from batch means are labelled as such, and suspects are not shown."""
    view = View()
    for event in fake_events(800):
        if isinstance(event, events.SamplesSurveyed):
            event = dataclasses.replace(
                event, source="batch means of 128", trust="rough", suspects=(), suspect_names=(), num_suspects=0
            )
        view.fold(event)

    assert any("batch means of 128: rough" in line for line in screen(view, 80, 24))
    assert any("not shown" in line for line in screen(view, 80, 24, view="samples", listed="suspects"))


def test_totals_and_time_left_right_after_a_resume():
    """A resumed run shows its step, share and time left before its first step, from the time of before."""
    view = View()
    view.fold(events.RunStarted(5000, 1000.0, "it", 1000, 10, 100, 10_000, None, "balanced"))
    frame = "\n".join(screen(view, 80, 24))

    assert "step 5,000/10,000" in frame
    assert "50.0%" in frame
    assert "ETA ~16:40" in frame


def test_rest_of_a_time_budget_is_the_budget():
    """With a budget in seconds the time left is what is left of it, by the clock."""
    view = View()
    view.fold(events.RunStarted(0, 0.0, "it", 1000, 10, 100, None, 600.0, "balanced"))
    view.fold(events.StepDone(1, 1.0, 0, 1 / 600, 1.0, math.nan, 0.1, 10, False))

    assert "ETA 8:20" in "\n".join(screen(view, 80, 24, scene=Scene(now=100.0)))


def test_rate_below_the_schedule_shows_its_factor():
    """While recovery holds the rate down, the screen says what the schedule would be and the factor."""
    assert "lr 0.03426 = plan 0.06852 x0.5" in "\n".join(screen(fake_view(), 80, 24))


@pytest.mark.parametrize(
    ("scene", "mode", "word"),
    [
        (Scene(is_paused=True), "live", "PAUSED"),
        (Scene(link="died"), "watch", "DIED"),
        (Scene(link="stalled 45 s"), "watch", "STALLED"),
        (Scene(now=5000.0), "live", "STALLED"),
        (Scene(), "live", "RECOVERING"),
    ],
)
def test_state_word(scene, mode, word):
    """The state is one word, of several the worst."""
    assert word in screen(fake_view(), 80, 24, scene=scene, mode=mode)[0]


def test_state_word_of_a_run_that_gave_up():
    """A run that ended with TrainingDiverged says so, and a new start of it does not."""
    view = fold_all(View(), fake_events(50))
    view.fold(events.GaveUp(50, 20.0, "all tried", None))
    view.fold(events.RunEnded(50, 20.0, finished=False))

    assert "DIVERGED" in screen(view, 80, 24)[0]
    view.fold(events.RunStarted(40, 16.0, "it", 1000, 10, 100, 10_000, None, "balanced"))
    assert "DIVERGED" not in screen(view, 80, 24)[0]


@pytest.mark.parametrize(("finished", "word"), [(True, "FINISHED"), (False, "STOPPED")])
def test_state_word_of_an_ended_run(finished, word):
    """A run that is over says whether its budget was used up."""
    view = fold_all(View(), fake_events(50))
    view.fold(events.RunEnded(50, 20.0, finished))

    assert word in screen(view, 80, 24)[0]


def test_histogram_shows_every_count():
    """A bin with a single sample leaves a trace, an empty one none."""
    assert counts([1000, 0, 1], 3, BRAILLE) == "█ ▁"
    assert tower([2, 1], 2, 2, ASCII) == ["# ", "##"]


def test_trace_ends_with_the_newest():
    """A trace shows the newest values at its right, and a space where nothing is known."""
    assert spark([9.0, 0.0, math.nan, 1.0], 3, BRAILLE) == "▁ █"


def test_small_numbers_of_a_column_keep_their_digits():
    """A number that would be 0.0000 in its column is written as a power of ten."""
    assert aligned([2.3e-7, 0.5, math.nan], 9) == ["  2.3e-07", "   0.5000", "      nan"]
