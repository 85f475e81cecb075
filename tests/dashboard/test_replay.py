"""Replays: the same picture from the folder as in the training."""

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.state.ui_state import Action
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.watch import Replay
from learnit_r8.events.condenser import Condenser
from tests.dashboard.test_watch import fold, text_of
from tests.drive import FakeClock, make, sample_losses
from tests.journal.run_folders import STARTED, folder_with, hundred, steps


def test_replay_keeps_the_pace(tmp_path):
    """A replay shows the events up to its position, which reaches the end in twenty seconds."""
    folder_with(tmp_path, STARTED, *hundred())
    clock = FakeClock()
    replay = Replay(tmp_path, clock=clock)
    seen = []
    for _ in range(5):
        clock.advance(1.0)
        seen.append(fold(replay).step)
    replay.act(Action.PAUSE)
    clock.advance(50.0)
    seen.append(fold(replay).step)
    replay.act(Action.PAUSE)
    clock.advance(1.0)
    seen.append(fold(replay).step)

    assert seen == [50, 100, 150, 200, 250, 250, 300]
    clock.advance(14.0)
    assert fold(replay).step == 1000
    assert replay.scene().now is None


def test_replay_pauses_at_the_step(tmp_path):
    """`--to` stops at a step, however long one waits, and goes on when asked to."""
    folder_with(tmp_path, STARTED, *(steps(number) for number in range(10, 101, 10)))
    clock = FakeClock()
    replay = Replay(tmp_path, to_step=45, clock=clock)
    clock.advance(1000.0)
    assert fold(replay).step == 40
    assert replay.scene().is_paused
    replay.act(Action.PAUSE)
    clock.advance(1000.0)

    assert fold(replay).step == 100


def test_later_session_is_not_waited_for(tmp_path):
    """Where a resumed run began again at an earlier time, the replay goes back there too."""
    resumed = events.RunStarted(20, 2.0, "it", 100, 10, 10, 1000, None, "balanced")
    folder_with(tmp_path, STARTED, steps(500), resumed, steps(30))
    clock = FakeClock()
    replay = Replay(tmp_path, clock=clock)
    # Of five seconds to show: fifty training seconds.
    clock.advance(51.0 / 2.5)
    fold(replay)
    clock.advance(3.1 / 2.5)

    assert fold(replay).step == 30


def trained(folder, listeners=()):
    clock = FakeClock()
    r8 = make(200, batch_size=4, num_epochs=2, run_dir=folder, listeners=listeners, clock=clock, name="same")
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            clock.advance(0.1)
            r8.update_with_loss(sample_losses(indices))
    return r8


@pytest.mark.parametrize("step", [7, 33, 100])
def test_replay_shows_what_the_live_screen_showed(tmp_path, step):
    """Up to any step, the picture of the replay is that of the training at that step."""

    class Heard:
        wants_surveys = True

        def __init__(self):
            self.view = View()

        def __call__(self, event):
            if event.step <= step:
                self.view.fold(event)

    live = Heard()
    trained(tmp_path, [Condenser(live)]).close()
    replay = Replay(tmp_path, to_step=step)
    replay.jump()
    lines = text_of(replay.view, replay.scene()), text_of(live.view, replay.scene())

    assert lines[0].splitlines()[3:] == lines[1].splitlines()[3:]
    assert replay.view.step == live.view.step


def test_replay_shows_what_was_printed(tmp_path):
    """The output view of a replay has the lines of output.log."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    (folder / "output.log").write_text("hello\nsecond line\n")

    assert Replay(folder).scene().output == ["hello", "second line"]
    assert Replay(folder_with(tmp_path / "none", STARTED)).scene().output == []
