import pytest

from learnit_r8.dashboard.keys import MENU, TABLE, press, works
from learnit_r8.dashboard.render.pages import VIEWS
from learnit_r8.dashboard.state.ui_state import MODES, Action, UiState, listed_samples
from learnit_r8.dashboard.state.view import View
from tests.screen_common import fake_view, screen

ENDING = {Action.STOP, Action.DETACH}
ALL_KEYS = sorted({key for binding in TABLE for key in binding.keys} | set("abcdefghijklmnopqrstuvwxyz0123456789"))


def pressed(keys, ui=None, view=None):
    ui, action = ui or UiState(), None
    for key in keys:
        ui, action = press(key, ui, view or fake_view())
    return ui, action


@pytest.mark.parametrize("view", VIEWS)
def test_no_single_key_ends_a_run(view):
    """In every view, one key alone neither stops the training nor closes its screen."""
    assert [key for key in ALL_KEYS if pressed([key], UiState(view=view))[1] in ENDING] == []


@pytest.mark.parametrize(("key", "action"), MENU.items())
def test_second_key_after_q_ends_it(key, action):
    """After q, a second key chooses how to leave."""
    assert pressed(["q", key])[1] is action


@pytest.mark.parametrize("key", ["q", "escape", "x", "enter"])
def test_other_keys_after_q_go_back(key):
    """After q, any other key stays in the run."""
    assert pressed(["q", key]) == (UiState(), None)


@pytest.mark.parametrize("mode", ["watch", "replay"])
def test_viewer_just_leaves(mode):
    """In a viewer q leaves at once, and no key acts on the run."""
    actions = {press(key, UiState(mode=mode), fake_view())[1] for key in ALL_KEYS}

    assert press("q", UiState(mode=mode), fake_view())[1] is Action.LEAVE
    assert not actions & {Action.STOP, Action.SAVE, Action.DETACH}


def test_cool_down_asks_for_its_length_first():
    """After d a length is typed; Enter asks for the cool-down, Escape does not."""
    ui, action = pressed(["d", *"20mim", "backspace", "n", "enter"])

    assert (action, ui.asked, ui.asking) == (Action.COOL_DOWN, "20min", None)
    assert pressed(["d", "5", "escape"]) == (UiState(), None)
    assert pressed(["d", "enter"])[1] is Action.COOL_DOWN
    assert "cool down for" in "\n".join(screen(View(), 120, 30, asking="20m"))
    assert "cool down for 20m_" in "\n".join(screen(View(), 40, 30, asking="20m"))


def test_no_key_means_two_things():
    """In every place a key has at most one meaning."""
    for ui in (UiState(mode=mode, view=view) for mode in MODES for view in VIEWS):
        keys = [key for binding in TABLE if works(binding, ui) for key in binding.keys]
        assert len(keys) == len(set(keys)), ui


@pytest.mark.parametrize("mode", MODES)
def test_help_names_every_key_that_works(mode):
    """The help is made from the table of keys: every key of the mode is in it, with its text."""
    frame = "\n".join(screen(View(), 200, 60, help=True, mode=mode))

    for binding in TABLE:
        assert (binding.text in frame) == (mode in binding.modes)


@pytest.mark.parametrize(("width", "height"), [(60, 16), (31, 7)])
def test_help_can_be_read_to_its_end(width, height):
    """On a small screen the keys that scroll do so in the help: every line of it can be seen; other keys close it."""
    ui, seen = pressed("?")[0], set()
    for _ in range(60):
        seen |= set(screen(View(), width, height, **vars(ui)))
        ui = pressed(["down"], ui)[0]
    whole = [line for line in screen(View(), width, 200, help=True) if line.startswith("  ")]

    assert len(whole) >= 40
    assert set(whole) <= seen
    assert ui.help
    assert pressed(["home"], ui)[0].help_scroll == 0
    assert not pressed(["x"], ui)[0].help
    assert pressed(["x", "?"], ui)[0].help_scroll == 0


# fmt: off
CHANGES = [
    # Switches turn on and off again.
    ("y", "log_scale", True), ("yy", "log_scale", False), ("z", "zoom", "whole range"), ("zzzz", "zoom", "all"),
    (" ", "frozen", True), ("4e", "alerts_only", True), ("?", "help", True), ("??", "help", False), ("q", "menu", True),
    # Digits choose a view, Tab goes to the next and Shift-Tab back, round and round.
    *[(str(number), "view", view) for number, view in enumerate(VIEWS, start=1)],
    (["tab"] * 8, "view", "overview"), (["shift-tab"], "view", "incidents"),
    # The selected sample moves with the arrows and stays within the list, of the suspects and of the hardest in turn.
    (["3", "down", "down", "up"], "selected", 1), (["3", "up"], "selected", 0),
    (["3", "end"], "selected", len(listed_samples(UiState(), fake_view())) - 1),
    ("3l", "listed", "suspects"), ("3ll", "listed", "hardest"),
    # While a filter is typed keys are text; Enter keeps it, Backspace takes one off, Escape forgets it.
    ([*"4/qs", "backspace", "enter"], "filter", "q"), ([*"4/q", "escape"], "filter", ""),
    ([*"4/q", "up"], "typing", "q"),
    # Escape takes back one thing at a time.
    ([*"4/a", "enter", "escape"], "filter", ""), ([*"4/a", "enter", "escape"], "view", "events"),
    ([*"4/a", "enter", "escape", "escape"], "view", "overview"),
    # One cannot scroll beyond the newest event or line.
    (["4", "up"], "scroll", 0), (["4", "down", "down", "up"], "scroll", 1), (["5", "up", "up", "down"], "scroll", 1),
]
# fmt: on


@pytest.mark.parametrize(("keys", "name", "value"), CHANGES)
def test_what_keys_change(keys, name, value):
    """The picture alone."""
    assert getattr(pressed(keys)[0], name) == value


def test_filter_chooses_samples():
    """Only samples whose name or position holds the filter are listed."""
    hardest = fake_view().survey.hardest

    assert list(listed_samples(UiState(filter=str(hardest[0])), fake_view())) == [hardest[0]]


def test_filter_chooses_events():
    """Only events that hold the filter are shown."""
    lines = screen(fake_view(), 100, 30, view="events", filter="CHECKPOINT")

    assert sum("saved" in line for line in lines) == 4
    assert not any("measured" in line for line in lines)


@pytest.mark.parametrize(("key", "action"), [
    ("p", Action.PAUSE), ("s", Action.SAVE), ("ctrl-s", Action.SAVE),
    ("c", Action.THEME), ("r", Action.REPAINT), ("ctrl-l", Action.REPAINT),
])  # fmt: skip
def test_keys_that_ask_for_something(key, action):
    """Keys that act on more than the picture ask the owner of the screen."""
    assert pressed([key]) == (UiState(), action)


def test_keys_work_before_anything_is_known():
    """No key fails on an empty view."""
    for view in VIEWS:
        for key in ALL_KEYS:
            press(key, UiState(view=view), View())
