import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.dashboard.painter import Painter
from learnit_r8.dashboard.state.ui_state import Action, Scene, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.terminal.screen import UnusableTerminal
from learnit_r8.dashboard.theme import choose_theme
from tests.drive import FakeClock

STARTED = events.RunStarted(0, 0.0, "digits", 1000, 32, 32, 320, None, "balanced")


class Paper:
    """A screen of paper: keys come from a script, time passes while it waits."""

    def __init__(self, clock, pressed=(), size=(80, 24)):
        self.theme = choose_theme({"TERM": "xterm-256color"})
        self.width, self.height = size
        self.clock, self.pressed = clock, list(pressed)
        self.calls, self.waits, self.frames = [], [], []

    def wait(self, seconds):
        self.waits.append(seconds)
        self.clock.advance(max(seconds, 0.0))

    def keys(self):
        return self.pressed.pop(0) if self.pressed else []

    def paint(self, lines):
        self.frames.append((self.clock.now, lines))

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name)


class Person:
    """An owner of a screen that notes what is asked of it."""

    def __init__(self, happened=(), folder=""):
        self.happened, self.asked, self.folder = list(happened), [], folder
        self.view = View()

    def events(self):
        happened, self.happened = self.happened, []
        return happened

    def scene(self):
        return Scene(folder=self.folder)

    def act(self, action):
        self.asked.append(action)
        return f"asked to {action.value}"


class Costs:
    """A processor clock: every frame takes what the script says."""

    def __init__(self, painter_frames, costs):
        self.frames, self.costs = painter_frames, costs
        self.num_paid, self.total = 0, 0.0

    def __call__(self):
        while self.num_paid < len(self.frames):
            self.total += self.costs[min(self.num_paid, len(self.costs) - 1)]
            self.num_paid += 1
        return self.total


def painter_on(paper, owner=None, **ui):
    """A painter whose frames cost nothing."""
    return Painter(paper, owner or Person(), UiState(**ui), clock=paper.clock, cpu_clock=lambda: 0.0)


def text_of(paper):
    """All that was ever painted."""
    return "".join(text for _, lines in paper.frames for line in lines for text, _ in line)


def painted(seconds, *, costs=(0.001,), pressed=(), happened=(STARTED,), folder="", size=(80, 24)):
    """A painter that has run for some seconds, its paper and its owner."""
    clock = FakeClock()
    paper, owner = Paper(clock, pressed, size), Person(happened, folder)
    painter = Painter(paper, owner, UiState(), clock=clock, cpu_clock=Costs(paper.frames, costs))
    end = paper.wait

    def wait(seconds_to_wait):
        end(seconds_to_wait)
        if clock.now >= seconds:
            painter.stop()

    paper.wait = wait
    painter.run()
    return painter, paper, owner


def test_four_frames_a_second():
    """Cheap frames come four times a second, the first at once."""
    _, paper, _ = painted(10.0)

    assert paper.frames[0][0] == 0.0
    assert len(paper.frames) == 40


def test_expensive_frames_come_later():
    """Frames of 10 ms come so seldom that drawing takes less than one hundredth of a core."""
    _, paper, _ = painted(60.0, costs=(0.010,))

    assert len(paper.frames) >= 20
    assert len(paper.frames) * 0.010 <= 0.01 * 60.0


@given(costs=st.lists(st.floats(0.0, 0.3), min_size=1, max_size=10))
def test_budget_holds_in_the_long_run(costs):
    """Whatever constant cost frames have, drawing stays below one hundredth of a core."""
    _, paper, _ = painted(240.0, costs=(*costs, costs[-1]), size=(1, 1))
    late = [at for at, _ in paper.frames if at > 120]

    assert (len(late) - 1) * costs[-1] <= 0.01 * 120


def test_one_expensive_frame_does_not_stop_the_drawing():
    """A single frame of half a second, the first one for instance, does not freeze the picture."""
    _, paper, _ = painted(10.0, costs=(0.5, 0.001))

    assert len(paper.frames) > 20


def test_cost_is_shown():
    """The painter measures its share of a core."""
    painter, _, _ = painted(10.0, costs=(0.002,))

    assert math.isclose(painter.ui_share, 0.002 * 3, rel_tol=0.1)


def test_key_is_answered_at_once():
    """A key is followed by a frame at once, not a quarter of a second later."""
    paper = Paper(FakeClock(), [[], [], ["?"]])
    painter = painter_on(paper)
    moments = iter([0.0, 0.25, 0.0, 0.05])

    def wait(seconds):
        try:
            paper.clock.advance(next(moments))
        except StopIteration:
            painter.stop()

    paper.wait = wait
    painter.run()

    assert painter.ui.help
    assert [at for at, _ in paper.frames] == pytest.approx([0.0, 0.25, 0.30])


def test_held_key_does_not_draw_without_end():
    """A key that repeats draws at most twenty frames a second."""
    paper = Paper(FakeClock(), [["down"]] * 1000)
    painter = painter_on(paper)

    def wait(seconds):
        paper.clock.advance(0.01)
        if paper.clock.now > 2.0:
            painter.stop()

    paper.wait = wait
    painter.run()

    assert 30 <= len(paper.frames) <= 42


def test_actions_go_to_the_owner():
    """Keys that act on the run reach its owner; a single q does not end anything."""
    _, _, owner = painted(3.0, pressed=[["p"], ["s"], ["ctrl-s"], ["q"], ["d"], ["q"], ["s"]])

    assert owner.asked == [Action.PAUSE, Action.SAVE, Action.SAVE, Action.DETACH, Action.STOP]


def test_answer_is_shown_for_a_while():
    """The answer to an action is on the screen for some seconds."""
    _, paper, _ = painted(12.0, pressed=[["s"]])
    shown = [(at, "asked to save" in "".join(text for line in lines for text, _ in line)) for at, lines in paper.frames]

    assert {said for at, said in shown if 0.5 < at < 4} == {True}
    assert {said for at, said in shown if at > 6} == {False}


def test_frozen_picture_folds_nothing():
    """While the picture is frozen events wait; afterwards none is lost."""
    paper, owner = Paper(FakeClock(), [[" "], [], []]), Person()
    painter = painter_on(paper, owner)
    seen = []

    def wait(seconds):
        paper.clock.advance(max(seconds, 0.0))
        seen.append(painter.view.run)
        if len(seen) == 1:
            owner.happened = [STARTED]
        if len(seen) == 6:
            paper.pressed = [[" "]]
        if len(seen) == 10:
            painter.stop()

    paper.wait = wait
    painter.run()

    assert seen[5] is None
    assert seen[-1] == STARTED


def test_exception_while_drawing_gives_the_terminal_back():
    """The painter closes the screen before an error of drawing reaches its caller."""
    paper = Paper(FakeClock())

    def paint(lines):
        raise ZeroDivisionError("a bug")

    paper.paint = paint
    painter = painter_on(paper)
    with pytest.raises(ZeroDivisionError):
        painter.run()

    assert paper.calls[-1] == "close"
    assert painter.has_opened.is_set()


def test_terminal_that_cannot_be_opened():
    """A terminal that cannot be opened raises its reason, and nobody waits for the screen."""
    paper = Paper(FakeClock())

    def refuse():
        raise UnusableTerminal("too small a brain")

    paper.open = refuse
    painter = painter_on(paper)
    with pytest.raises(UnusableTerminal, match="too small a brain"):
        painter.run()

    assert painter.has_opened.is_set()


def test_leaving_ends_a_viewer():
    """The key that leaves a viewer ends its painter."""
    paper = Paper(FakeClock(), [["q"]])
    painter_on(paper, mode="watch").run()

    assert paper.calls[-1] == "close"
