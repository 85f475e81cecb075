"""Rules of drawing that hold for any run, any size and wherever a person looks."""

import dataclasses

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.dashboard.keys import TABLE, press
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.render.pages import VIEWS
from learnit_r8.dashboard.state.ui_state import LISTS, MODES, ZOOMS, Scene, UiState
from learnit_r8.dashboard.state.view import Point, View
from learnit_r8.dashboard.text import width_of
from learnit_r8.dashboard.theme import NAMES, choose_theme
from tests.dashboard.test_text import HOSTILE, assert_harmless
from tests.events.any_events import any_event
from tests.examples import examples
from tests.screen_common import SCENE, fake_events, fake_view, screen

NUMBERS = st.floats() | st.floats(0, 10)

STEPS = st.integers(0, 10**12) | st.integers(0, 100)

ANY_EVENT = any_event(STEPS, NUMBERS, HOSTILE)

ANY_UI = st.builds(
    UiState,
    mode=st.sampled_from(MODES),
    view=st.sampled_from(VIEWS),
    listed=st.sampled_from(LISTS),
    zoom=st.sampled_from(ZOOMS),
    filter=st.text(max_size=3),
    typing=st.none() | HOSTILE,
    **dict.fromkeys(("scroll", "selected"), st.integers(0, 10**6)),
    **dict.fromkeys(("log_scale", "alerts_only", "frozen", "help", "menu"), st.booleans()),
)

ANY_SCENE = st.builds(
    Scene,
    now=st.none() | NUMBERS,
    output=st.lists(HOSTILE, max_size=5).map(tuple),
    clock=st.floats(allow_nan=True),
    is_gone=st.sampled_from([None, False, True]),
    is_paused=st.booleans(),
    **dict.fromkeys(("said", "folder"), HOSTILE),
    **dict.fromkeys(("num_output", "num_unread"), STEPS),
    **dict.fromkeys(("ui_share",), NUMBERS),
)

THEMES = [
    choose_theme({"TERM": "xterm-256color", "R8_GLYPHS": glyphs, "R8_THEME": name})
    for glyphs in ("braille", "blocks", "ascii")
    for name in NAMES
]

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 100)) | st.tuples(st.integers(1, 90), st.integers(1, 30))

# Shrinking runs as large as these takes gigabytes.
MANY = examples(5, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))


def check(lines, width, height, theme):
    """What every screen must be."""
    assert len(lines) == height
    for line in lines:
        assert sum(width_of(text) for text, _ in line) <= width
        for text, style in line:
            assert style in theme.styles
            assert_harmless(text)


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


def test_rough_values_are_called_rough():
    """Values from batch means are labelled as such, and suspects are not shown."""
    view = View()
    for event in fake_events(800):
        if isinstance(event, events.SamplesSurveyed):
            event = dataclasses.replace(
                event, source="batch means of 128", trust="rough", suspects=(), suspect_names=(), num_suspects=0
            )
        view.fold(event)

    assert any("batch means of 128: rough" in line for line in screen(view, 80, 24, view="data"))
    assert any("not shown" in line for line in screen(view, 80, 24, view="samples", listed="suspects"))
