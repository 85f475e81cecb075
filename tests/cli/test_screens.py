"""``watch`` and ``replay``: one picture as text, lines in a pipe, and the screen on a terminal."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.cli import main
from learnit_r8.cli.runs import _drawing
from learnit_r8.dashboard.keys import press
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.render.pages import VIEWS
from learnit_r8.dashboard.state.ui_state import Action, UiState, chosen_rows
from learnit_r8.dashboard.watch import RunList
from learnit_r8.journal.run import UnreadableRun
from tests.cli.commands import ROOT, printed
from tests.drive import INF, NAN
from tests.events.any_events import any_event
from tests.examples import examples
from tests.journal.run_folders import STARTED, folder_with, hundred, steps
from tests.terminals import Terminal


def test_once_prints_a_picture(tmp_path, capsys, monkeypatch):
    """`--once` prints one picture of the asked size as plain text, in ASCII where that is wanted."""
    monkeypatch.setenv("R8_GLYPHS", "ascii")
    folder_with(tmp_path, STARTED, *hundred(), events.RunEnded(1000, 100.0, True))
    assert main(["watch", str(tmp_path), "--once", "--width", "70", "--height", "20"]) == 0
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


def test_watch_of_a_run_that_has_ended_says_it_once(tmp_path):
    """In a pipe, a run that is over is told in one line; as JSON there is nothing more to tell."""
    folder_with(tmp_path, STARTED, steps(5), events.RunEnded(5, 1.0, True))
    command = [sys.executable, "-m", "learnit_r8", "watch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT, timeout=60)

    assert (len(done.stdout.splitlines()), done.returncode) == (1, 0)
    assert as_json.stdout == ""


def test_screen_of_a_live_run(tmp_path):
    """On a terminal `watch` shows the run, follows it, answers keys, says that it died, and gives the terminal back."""
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
        with Terminal(["-m", "learnit_r8", "watch", str(tmp_path / "run")], width=100, height=30) as terminal:
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 0)])
def test_signals_end_the_viewer_in_order(tmp_path, number, code):
    """Whatever ends the viewer, the terminal is as it was."""
    folder_with(tmp_path, STARTED, steps(5), events.RunEnded(5, 1.0, True))
    with Terminal(["-m", "learnit_r8", "watch", str(tmp_path)], width=100, height=30) as terminal:
        terminal.wait_for("FINISHED")
        terminal.signal(number)

        assert terminal.wait_for_end() == code
        assert terminal.is_restored


def test_replay_on_a_terminal(tmp_path):
    """On a terminal `replay` plays until one leaves it."""
    folder_with(tmp_path, STARTED, *hundred(), events.RunEnded(1000, 100.0, True))
    with Terminal(["-m", "learnit_r8", "replay", str(tmp_path)], width=100, height=30) as one:
        one.wait_for("step 1")
        one.press("q")

        assert one.wait_for_end() == 0
        assert one.is_restored


ODD_EVENT = any_event(
    st.sampled_from([0, 1, -1, 7, 500, 2**53 - 1]),
    st.sampled_from([0.0, 0.5, 3.0, -1.0, 4e38, -4e38, 1e-308, 1e11, NAN, INF]),
    st.sampled_from(["", "\x1b[2J", "\u202e", "x" * 5000, "猫" * 300, "\x00"]),
)


@examples(0.5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happened=st.lists(ODD_EVENT, min_size=10, max_size=30))
def test_hostile_run_is_drawn(tmp_path_factory, happened, capsys):
    """Whatever a run folder says, every view of it is drawn, or it is refused with a reason; nothing else happens."""
    folder = folder_with(tmp_path_factory.mktemp("runs") / "run", STARTED, *happened, steps(600))
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


def test_watch_of_a_folder_lists_its_runs(tmp_path, capsys):
    """State, step, metric and course of each run, as `ls` has them; in a pipe the lines of `ls`."""
    for place in range(3):
        logged = [events.MetricsLogged(n, 1.0, n, {"val_loss": place + 1 / n}) for n in range(1, 6)]
        folder_with(tmp_path / f"run-{place}", STARTED, steps(5), *logged)
    code, lines = printed(capsys, "watch", tmp_path, "--once", "--width", 110, "--height", 12)
    _, plain = printed(capsys, "watch", tmp_path)
    _, listed = printed(capsys, "ls", tmp_path)

    assert code == 0
    assert lines[0].startswith("─ runs in")
    assert lines[1].split()[:7] == ["run", "state", "done", "step", "smoothed", "metric", "course"]
    assert sorted(line.split()[0] for line in lines[2:5]) == ["run-0", "run-1", "run-2"]
    assert any("val_loss 0.2 @5" in line for line in lines)
    assert any(set(line) & set("▁▂▃▄▅▆▇█") for line in lines[2:5])
    assert plain[0] == listed[0]
    assert plain[0].split()[:8] == [*lines[1].split()[:7], "written"]


def test_list_is_filtered_sorted_and_opens_a_run(tmp_path):
    """`/` filters, `s` sorts, the arrows choose, Enter opens the selected run, and q leaves."""
    for place in range(3):
        logged = events.MetricsLogged(5, 1.0, 5, {"val_loss": 3.0 - place})
        folder_with(tmp_path / f"run-{place}", STARTED, steps(5), logged)
    runs, ui = RunList(tmp_path), UiState(mode="list")
    list(runs.events())

    def press_all(keys, ui):
        for key in keys:
            ui, action = press(key, ui, runs.view)
        return ui, action

    by_metric, _ = press_all(["s"], ui)
    assert [Path(row.folder).name for row in chosen_rows(by_metric, runs.rows)] == ["run-2", "run-1", "run-0"]
    filtered, _ = press_all(["/", *"run-1", "enter"], ui)
    assert [Path(row.folder).name for row in chosen_rows(filtered, runs.rows)] == ["run-1"]
    assert press_all(["s", "down", "enter"], ui)[1] is Action.OPEN
    assert press_all(["s", "down"], ui)[0].selected == 1
    assert press_all(["q"], ui)[1] is Action.LEAVE
    for width, height in ((1, 1), (20, 3), (80, 24), (200, 60)):
        drawn = render(runs.view, by_metric, width, height, scene=runs.scene())
        assert len(drawn) == height
        assert all(sum(len(span.text) for span in line) <= width for line in drawn)
