"""The screen of a run, read from its folder."""

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.keys import press
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.state.ui_state import UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.watch import Watch
from learnit_r8.journal.run import UnreadableRun
from tests.drive import FakeClock, make, sample_losses
from tests.journal.run_folders import STARTED, folder_with, line, steps


def fold(owner):
    """What a painter does between two frames."""
    for event in owner.events():
        owner.view.fold(event)
    return owner.view


def text_of(view, scene, ui=UiState(mode="watch")):
    return "\n".join("".join(span.text for span in row).rstrip() for row in render(view, ui, 100, 30, scene=scene))


def test_growing_run_is_followed(tmp_path):
    """The next poll shows what was added to the folder."""
    folder_with(tmp_path, STARTED, steps(5))
    watch = Watch(tmp_path, wall=lambda: 1000.0)
    assert watch.view.step == 5
    folder_with(tmp_path, steps(10), steps(15))

    assert fold(watch).step == 15


def test_long_run_is_drawn_at_a_glance_and_then_read(tmp_path):
    """A selection of a long journal is shown at once, and replaced when all of it was read."""
    folder_with(tmp_path, STARTED, *(steps(number) for number in range(5, 50_000, 5)), steps(50_000))
    watch = Watch(tmp_path, wall=lambda: 1000.0)
    glance = watch.view
    assert (glance.run, glance.step) == (STARTED, 50_000)
    assert watch.scene().said.startswith("reading all of it, ")
    watch._loader.join(60)
    folder_with(tmp_path, steps(50_005))
    fold(watch)

    assert watch.view is not glance
    assert (watch.view.step, watch.scene().said) == (50_005, "")


def test_replaced_run_is_shown_anew(tmp_path):
    """A journal that another file replaced is shown from its beginning."""
    folder_with(tmp_path, STARTED, steps(50))
    watch = Watch(tmp_path, wall=lambda: 1000.0)
    (tmp_path / "events.jsonl").write_text(line(STARTED))

    assert fold(watch).step == 0


def test_time_goes_on_while_the_run_is_silent(tmp_path):
    """The clock of a running run is the time of its last record plus the time since."""
    folder_with(tmp_path, STARTED, steps(100), when=1000.0)
    wall = FakeClock()
    wall.now = 1007.0
    watch = Watch(tmp_path, wall=wall)

    assert watch.scene().now == pytest.approx(10.0 + 7.0)
    folder_with(tmp_path, events.RunEnded(100, 10.0, True))
    fold(watch)

    assert watch.scene().now is None
    assert "FINISHED" in text_of(watch.view, watch.scene())


def test_captured_output_is_shown(tmp_path):
    """The end of output.log is there, and what is added to it, without control sequences on the screen."""
    folder_with(tmp_path, STARTED)
    (tmp_path / "output.log").write_bytes(b"x" * 200_000 + b"\nlast but one\n\xff\x1b[2Jlast\n")
    watch = Watch(tmp_path, wall=lambda: 1000.0)
    scene = watch.scene()
    with open(tmp_path / "output.log", "a") as file:
        file.write("and more\n")

    assert scene.output == ["last but one", "\ufffd\x1b[2Jlast"]
    assert watch.scene().output[-1] == "and more"
    assert "\x1b" not in text_of(watch.view, scene, UiState(mode="watch", view="output"))


@pytest.mark.parametrize("key", ["p", "s", "d", "ctrl-s"])
def test_keys_that_act_on_the_training_say_how_to_ask_it(tmp_path, key):
    """A key that acts on the training on its own screen names the command that does so from a viewer."""
    folder_with(tmp_path, STARTED)
    _, action = press(key, UiState(mode="watch"), View())

    assert "learnit-r8 ask pause" in Watch(tmp_path).act(action)


def test_damaged_event_is_left_out_and_counted():
    """A view of a file leaves out an event that it cannot fold, and counts it."""
    view = View(skips_damage=True)
    odd = events.RunStarted(0, 0.0, "", 1, 1, 1, 1, None, "", {}, ("x",))
    view.fold(events.EpochDone(1, 1.0, 0, 0.5, 1.0, 0.1, 1, 1.0))
    view.fold(odd)
    view.fold(events.StepsDone(5, 1.0, 5, 0, 0.5, "x", 1.0, 1.0, 1.0, 1.0, 0.1, 5, 0))

    assert view.num_left_out == 1
    assert view.progress == 0.5


def test_gone_folder_ends_the_watch(tmp_path):
    """A folder that is deleted while it is watched is an error with a reason."""
    folder_with(tmp_path / "run", STARTED)
    watch = Watch(tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").unlink()
    with pytest.raises(UnreadableRun, match="run must hold a journal"):
        fold(watch)


def test_attached_and_detached_many_times(tmp_path):
    """Viewers that come and go change nothing in the training: same batches, same rates, same table."""

    def batches(folder):
        seen = []
        r8 = make(60, batch_size=4, num_epochs=6, run_dir=folder, seed=5)
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                if folder and r8.global_step % 9 == 0:
                    fold(Watch(folder))
                seen.append((indices.tolist(), lr))
                r8.update_with_loss(sample_losses(indices))
        r8.close()
        return seen, r8.table.loss.tobytes()

    assert batches(tmp_path / "run") == batches(None)
