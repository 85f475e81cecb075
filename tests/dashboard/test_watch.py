"""Watching and replaying: the same picture from the folder as in the training, on a real terminal too."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learnit_r8 import events
from learnit_r8.cli import main
from learnit_r8.cli.screens import _drawing
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.render.pages import VIEWS
from learnit_r8.dashboard.replay import Replay
from learnit_r8.dashboard.state.ui_state import Action, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.watch import NOT_HERE, Watch
from learnit_r8.events.condenser import Condenser
from learnit_r8.journal import UnreadableRun
from tests.drive import FakeClock, make, sample_losses
from tests.journal.test_run_folder import STARTED, folder_with, line, steps

ROOT = Path(__file__).parents[2]


def hundred():
    return [steps(number) for number in range(10, 1001, 10)]


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
    folder_with(tmp_path, STARTED, *(steps(number) for number in range(5, 100_000, 5)), steps(100_000))
    watch = Watch(tmp_path, wall=lambda: 1000.0)
    glance = watch.view
    assert (glance.run, glance.step) == (STARTED, 100_000)
    assert watch.scene().said.startswith("reading all of it, ")
    watch._loader.join(60)
    folder_with(tmp_path, steps(100_005))
    fold(watch)

    assert watch.view is not glance
    assert (watch.view.step, watch.scene().said) == (100_005, "")
    assert len(watch.view.recent) > len(glance.recent) // 2


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
    watch._state_until = 0.0

    assert watch.scene().now is None
    assert watch.scene().link == "finished"


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


@pytest.mark.parametrize("action", NOT_HERE)
def test_what_needs_the_training_is_refused_with_a_word(tmp_path, action):
    """A key that would act on the training says why a viewer cannot."""
    folder_with(tmp_path, STARTED)
    assert "only looks on" in Watch(tmp_path).act(action)
    if action is not Action.PAUSE:
        assert "only looks on" in Replay(tmp_path).act(action)


def test_damaged_event_is_left_out_and_counted():
    """A view of a file leaves out an event that it cannot fold, and counts it."""
    view = View(skips_damage=True)
    odd = events.RunStarted(0, 0.0, "", 1, 1, 1, 1, None, "", {}, ("x",))
    view.fold(events.EpochDone(1, 1.0, 0, 0.5, 1.0, 0.1, 1, 1.0))
    view.fold(odd)
    view.fold(events.StepsDone(5, 1.0, 5, 0, 0.5, "x", 1.0, 1.0, 1.0, 1.0, 0.1, 5, 0))

    assert view.num_left_out == 1
    assert view.progress == 0.5


def test_replay_keeps_the_pace(tmp_path):
    """A replay shows the events up to its position, which moves at its speed; keys change the speed."""
    folder_with(tmp_path, STARTED, *hundred())
    clock = FakeClock()
    replay = Replay(tmp_path, speed=2.0, clock=clock)
    seen = []
    for _ in range(5):
        clock.advance(1.0)
        seen.append(fold(replay).step)
    replay.act(Action.FASTER)
    clock.advance(1.0)
    seen.append(fold(replay).step)
    replay.act(Action.PAUSE)
    clock.advance(50.0)
    seen.append(fold(replay).step)
    replay.act(Action.PAUSE)
    replay.act(Action.SLOWER)
    clock.advance(1.0)
    seen.append(fold(replay).step)

    assert seen == [20, 40, 60, 80, 100, 140, 140, 160]
    clock.advance(1000.0)
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


def test_usual_speed_shows_all_in_twenty_seconds(tmp_path):
    """Without a speed the whole run takes about twenty seconds."""
    folder_with(tmp_path, STARTED, steps(100), steps(4000))

    assert Replay(tmp_path).speed == pytest.approx(20.0)


def test_later_session_is_not_waited_for(tmp_path):
    """Where a resumed run began again at an earlier time, the replay goes back there too."""
    resumed = events.RunStarted(20, 2.0, "it", 100, 10, 10, 1000, None, "balanced")
    folder_with(tmp_path, STARTED, steps(500), resumed, steps(30))
    clock = FakeClock()
    replay = Replay(tmp_path, speed=1.0, clock=clock)
    clock.advance(51.0)
    fold(replay)
    clock.advance(3.1)

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


def test_once_prints_a_picture(tmp_path, capsys):
    """`--once` prints one picture of the asked size as plain text, in ASCII where that is wanted."""
    folder_with(tmp_path, STARTED, *hundred(), events.RunEnded(1000, 100.0, True))
    assert main(["watch", str(tmp_path), "--once", "--width", "70", "--height", "20", "--ascii"]) == 0
    watched = capsys.readouterr().out
    assert main(["replay", str(tmp_path), "--to", "500", "--once", "--width", "70", "--height", "20"]) == 0
    replayed = capsys.readouterr().out

    assert len(watched.splitlines()) == len(replayed.splitlines()) == 20
    assert watched.isascii()
    assert "FINISHED" in watched
    assert "step 500/1,000" in replayed
    assert max(map(len, watched.splitlines())) <= 70


def test_without_a_terminal_watch_follows_in_lines(tmp_path):
    """In a pipe `watch` prints lines as things happen, and ends with the run, and its exit code."""
    folder_with(tmp_path, STARTED, steps(5), when=time.time())
    command = [sys.executable, "-m", "learnit_r8", "watch", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    lines = [process.stdout.readline()]
    folder_with(tmp_path, events.MetricsLogged(10, 1.0, 10, {"accuracy": 0.5}), when=time.time())
    lines.append(process.stdout.readline())
    folder_with(tmp_path, events.RunEnded(10, 1.0, False), when=time.time())
    rest, _ = process.communicate(timeout=60)

    assert lines[0].startswith("it  running")
    assert lines[1] == "step 10: measured: accuracy 0.5\n"
    assert rest.splitlines()[-1].startswith("it  stopped")
    assert "\r" not in rest
    assert process.returncode == 5


def test_gone_folder_ends_the_watch(tmp_path):
    """A folder that is deleted while it is watched is an error with a reason."""
    folder_with(tmp_path / "run", STARTED)
    watch = Watch(tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").unlink()
    with pytest.raises(UnreadableRun, match="run must hold a journal"):
        fold(watch)


pty = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")


@pty
def test_screen_of_a_live_run(tmp_path):
    """On a terminal `watch` shows the run, follows it, answers keys, says that it died, and gives the terminal back."""
    terminals = pytest.importorskip("tests.terminals")
    code = (
        "import sys, time\nfrom learnit_r8 import R8Scheduler\n"
        "r8 = R8Scheduler(1000, batch_size=10, num_steps=100_000, run_dir=sys.argv[1], name='followed')\n"
        "for epoch in r8.epoch_iterator():\n    for batch, lr in r8.batch_iterator():\n"
        "        time.sleep(0.005)\n        r8.update_with_loss(1.0)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], cwd=ROOT)
    try:
        while not (tmp_path / "run" / "events.jsonl").is_file():
            time.sleep(0.02)
        with terminals.Terminal(["-m", "learnit_r8", "watch", str(tmp_path / "run")], width=100, height=30) as terminal:
            terminal.wait_for("followed")
            terminal.wait_for("epoch 3")
            terminal.press("4")
            terminal.wait_for("started: 1,000 samples")
            terminal.press("1")
            run.send_signal(signal.SIGKILL)
            run.wait()
            terminal.wait_for("DIED")
            terminal.press("q")

            assert terminal.wait_for_end() == 4
            assert terminal.is_restored
    finally:
        run.kill()
        run.wait()


@pty
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0), (signal.SIGHUP, 129)])
def test_signals_end_the_viewer_in_order(tmp_path, number, code):
    """Whatever ends the viewer, the terminal is as it was."""
    terminals = pytest.importorskip("tests.terminals")
    folder_with(tmp_path, STARTED, steps(5), events.RunEnded(5, 1.0, True))
    with terminals.Terminal(["-m", "learnit_r8", "watch", str(tmp_path)], width=100, height=30) as terminal:
        terminal.wait_for("FINISHED")
        terminal.signal(number)

        assert terminal.wait_for_end() == code
        assert terminal.is_restored


@pty
def test_replay_on_a_terminal(tmp_path):
    """On a terminal `replay` plays to the end and stays until one leaves it."""
    terminals = pytest.importorskip("tests.terminals")
    folder_with(tmp_path, STARTED, *hundred(), events.RunEnded(1000, 100.0, True))
    with terminals.Terminal(
        ["-m", "learnit_r8", "replay", str(tmp_path), "--speed", "1000"], width=100, height=30
    ) as one:
        one.wait_for("FINISHED")
        one.press("q")

        assert one.wait_for_end() == 0
        assert one.is_restored


@pty
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


def hostile_events(seed):
    """Events with every number and text as odd as their types allow."""
    import random

    rng = random.Random(seed)
    numbers = [0, 1, -1, 2**53 - 1, -(2**62), 7]
    floats = [0.0, -1.0, 1e308, -1e308, 1e-308, float("nan"), float("inf"), 0.5]
    texts = ["", "\x1b[2J", "\u202e", "x" * 5000, "猫" * 300, "\x00"]
    for kind in events.EVENTS.values():
        fields = {"kind": kind.__name__, "time": 1000.0}
        for name, hint in kind.__annotations__.items():
            if hint.startswith(("tuple", "dict")):
                inner = rng.choice(floats if "float" in hint else texts if "str" in hint else numbers)
                value = [inner] * rng.choice([0, 1, 4, 16]) if hint.startswith("tuple") else {rng.choice(texts): inner}
                value = [value] * 3 if "tuple[tuple" in hint else value
            else:
                value = rng.choice({"f": floats, "i": numbers, "s": texts, "b": [True, False]}[hint[0]])
            fields[name] = value
        yield {**fields, "step": rng.choice([0, 1, 2**53 - 1, 500]), "seconds": rng.choice([0.0, 1e11, 3.0])}


def as_json(value):
    if isinstance(value, float) and value not in (1e308, -1e308, 1e-308) and not abs(value) < 1e300:
        return repr(value)
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(40))
def test_hostile_run_is_drawn(tmp_path, seed, capsys):
    """Whatever a run folder says, every view of it is drawn, or it is refused with a reason; nothing else happens."""
    text = "".join(json.dumps(as_json(fields)) + "\n" for fields in hostile_events(seed))
    folder = folder_with(tmp_path, STARTED, text=text + line(steps(600)))
    codes = [main(["watch", str(folder), "--once", "--view", view]) for view in VIEWS]
    printed = capsys.readouterr()

    assert set(codes) <= {0, 1, 3, 4, 5}
    assert codes.count(1) == printed.err.count("run must hold numbers that can be drawn")
    assert not {"\x1b", "\u202e", "\x00"} & set(printed.out + printed.err)


def test_error_of_drawing_ends_the_viewer_with_a_reason():
    """Numbers that cannot be drawn end the viewer with a reason, not with a traceback."""
    with (
        pytest.raises(UnreadableRun, match=r"run must hold numbers that can be drawn, got ZeroDivisionError"),
        _drawing(),
    ):
        raise ZeroDivisionError
